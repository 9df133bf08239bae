"""Writing files that survive crashes, full disks and impatient users."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

import filelock

from nuclora.errors import NucloraError

# EDQUOT (a user's quota is full) is unknown to Windows.
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}

# What `atomic_file` writes to.
_TORN = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
# What `atomic_folder` writes to, and where in it the old folder waits.
_SCRATCH = ".scratch"
_OLD = "old"

LONGEST_NAME: Final = 255 - len("..01234567.tmp")
"""Bytes of the longest name that can be written: file systems take 255, and a file has a longer name at first."""


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's write errors into one line that names the file and the mend."""
    try:
        yield
    except OSError as error:
        mend = "check the path and its permissions"
        if error.errno in _FULL:
            mend = "free some space and run the same command again: nothing that is done is lost"
        elif error.errno == errno.EFBIG:
            mend = "raise the limit (ulimit -f), or write to a file system that takes larger files"
        raise NucloraError(f"cannot write ({error.strerror or error})", path=path, mend=mend) from error


def digest_file(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_openable(path: Path) -> None:
    """See that safetensors can open a file: it calls one missing that it may not read.

    Raises:
        FileNotFoundError: There is none.
        NucloraError: It may not be read, or its path is not UTF-8.
    """
    require_utf8(path)
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def require_utf8(path: Path) -> None:
    """See that safetensors takes a path.

    Raises:
        NucloraError: It is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        told = "the path is not UTF-8, and weights are only read from such"
        raise NucloraError(told, path=path, mend="rename the folder") from error


def unreadable(path: Path, error: OSError) -> NucloraError:
    """The error of a file or folder that the operating system does not let us read."""
    return NucloraError(f"cannot be read ({error.strerror})", path=path, mend="check the path and its permissions")


@contextlib.contextmanager
def damaged(path: Path, mend: str) -> Iterator[None]:
    """Turn what a damaged file leads its parser to into one line.

    Args:
        path: The file.
        mend: What the user can do about it.

    Raises:
        NucloraError: In place of what the parser raised.
    """
    try:
        yield
    except (OSError, AttributeError, TypeError, KeyError, ValueError, csv.Error) as error:
        raise NucloraError(f"damaged ({error.__class__.__name__}: {error})", path=path, mend=mend) from error


@contextlib.contextmanager
def hold(folder: Path, what: str, patience: float = 0) -> Iterator[None]:
    """Hold a folder for this process; a second one is refused.

    Args:
        folder: An existing folder.
        what: What it is, for the refusal.
        patience: Wait so many seconds for the other process before that.

    Raises:
        NucloraError: Another process holds it, or nothing can be written there.
    """
    with _locked(folder / ".lock", folder, what, patience):
        yield


@contextlib.contextmanager
def hold_file(path: Path, what: str, patience: float) -> Iterator[None]:
    """Hold a file that is being made for this process; nothing of the lock is left beside it.

    Args:
        path: The file, which need not exist, in an existing folder.
        what: What it is, for the refusal.
        patience: Wait so many seconds for another process before a refusal.

    Raises:
        NucloraError: Another process holds it, or nothing can be written there.
    """
    # Hidden: NAME.lock may be a file of the user's own.
    lock = path.with_name(f".{path.name}.lock")
    with _locked(lock, path, what, patience):
        try:
            yield
        finally:
            # While it is held, and so nobody else's: who waits opens it by its name again for each try. Windows removes
            # no open file; there filelock does it in the end.
            with contextlib.suppress(OSError):
                lock.unlink()


@contextlib.contextmanager
def _locked(file: Path, held: Path, what: str, patience: float) -> Iterator[None]:
    lock = filelock.FileLock(file, timeout=patience)
    with disk_errors(held):
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise NucloraError(
                f"another nuclora works on this {what}", path=held, mend="wait for it or stop it"
            ) from error
    try:
        yield
    finally:
        lock.release()


def place_of_new(folder: Path, mend: str = "name a new folder") -> Path:
    """Where a folder is to be made, with links and dots resolved.

    Args:
        folder: The folder; it may exist if it is empty, or be a link to such a one.
        mend: What the user can do about one that is not.

    Raises:
        NucloraError: It is not an empty folder, or the current one, or cannot be looked into.
    """
    with disk_errors(folder):
        place = folder.resolve()
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise NucloraError("exists and is not an empty folder", path=folder, mend=mend)
        if place.exists() and place.samefile(os.curdir):
            # The shell would go on in a folder that is no more.
            raise NucloraError(
                "the current folder, whose place the new one would take", path=folder, mend="name a folder in it"
            )
        return place


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file bit by bit so that a reader, or a crash, sees the old content or the new and nothing between.

    Args:
        path: The file; its folder is made if need be.

    Yields:
        Where to write. If the block raises, the file stays as it was.

    Raises:
        NucloraError: The disk is full or the path cannot be written.
    """
    if path.is_dir():
        raise NucloraError("a folder, not a file", path=path, mend="name a file")
    if path.exists() and not path.is_file():
        # Root could replace /dev/null by a file, and break the machine.
        raise NucloraError("a device, not a file", path=path, mend="name a file")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            # Opened by its name: tifffile wants to know what it is called. With the permissions that the user's files
            # have, which `tempfile` would not give it.
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def remove_torn(folder: Path, *, deep: bool = False, stores: str | None = None) -> None:
    """Remove what killed writers left in a folder that nobody else writes to now.

    Args:
        folder: The folder.
        deep: In the folders below it too, but not in runs and in what another process holds.
        stores: Ending of the folders that :func:`atomic_folder` writes there: what it left of them goes too, and they
            are not looked into. Of others it may be at work at this moment, for a command that holds no folder.

    Raises:
        NucloraError: Something cannot be removed.
    """
    with disk_errors(folder):
        for place, folders, files in os.walk(folder):
            for name in filter(_TORN.fullmatch, files):
                Path(place, name).unlink(missing_ok=True)
            closed = [name for name in folders if stores and name.endswith((stores, f"{stores}{_SCRATCH}"))]
            for name in closed:
                scratch = Path(place, name)
                if name.startswith(".") and name.endswith(_SCRATCH) and not scratch.is_symlink():
                    _drop_scratch(scratch, scratch.with_name(name[1:].removesuffix(_SCRATCH)))
            folders[:] = [name for name in folders if deep and name not in closed and not _is_others(Path(place, name))]


def _is_others(folder: Path) -> bool:
    """Whether a folder has a holder of its own, see :func:`hold`, at whatever time."""
    return (folder / ".lock").exists() or (folder / "run.json").exists()


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file at once, as :func:`atomic_file` does.

    Raises:
        NucloraError: The disk is full or the path cannot be written.
    """
    with atomic_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Write a folder so that a reader sees the old one or the new one, or for a moment none, and never half of one.

    What a killed process left of it is removed by the next one: two processes must not write one folder at once.

    Args:
        path: The folder; its parents are made if need be.

    Yields:
        An empty folder to write into. If the block raises, the folder at `path` stays as it was.

    Raises:
        NucloraError: The disk is full or the path cannot be written.
    """
    with disk_errors(path):
        scratch = path.parent / f".{path.name}{_SCRATCH}"
        fresh, old = scratch / "new", scratch / _OLD
        if scratch.exists():
            _drop_scratch(scratch, path)
        try:
            fresh.mkdir(parents=True)
            yield fresh
            for file in fresh.rglob("*"):
                if file.is_file():
                    # Windows syncs only what is open for writing, which a copy of a read-only file elsewhere is not.
                    with file.open("r+b" if os.name == "nt" else "rb") as stream:
                        os.fsync(stream.fileno())
            if path.exists():
                # A folder with files in it cannot be replaced in one step; the old one goes with the scratch folder.
                path.replace(old)
            try:
                fresh.replace(path)
            except BaseException:
                if old.exists():
                    old.replace(path)
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _drop_scratch(scratch: Path, path: Path) -> None:
    """Remove what a kill left of writing a folder, but for the old one, which comes back where it had made way."""
    if (scratch / _OLD).exists() and not path.exists():
        # The new one had not come yet.
        (scratch / _OLD).replace(path)
    shutil.rmtree(scratch)


class AppendLog:
    """A file of lines that grows; a last line torn by a crash, or still being written, is not a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_whole = False

    def lines(self) -> list[str]:
        """The whole lines so far, without line ends."""
        return [line.decode("utf-8") for line in self.raw_lines()]

    def raw_lines(self) -> list[bytes]:
        """The same as they are, for readers that must know which of them is damaged."""
        return self._whole().split(b"\n")[:-1]

    @property
    def is_empty(self) -> bool:
        """Whether there is no whole line yet; the file is read at most until the first append."""
        return not self._is_whole and not self._whole()

    def append(self, line: str) -> None:
        """Add one line."""
        if not self._is_whole:
            self._drop_torn_line()
        # On a full disk it is torn.
        self._is_whole = False
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        self._is_whole = True

    def rewrite(self, lines: Sequence[str]) -> None:
        """Replace the content."""
        write_atomic(self.path, "".join(line + "\n" for line in lines))
        # Of an emptied file `is_empty` must look again.
        self._is_whole = bool(lines)

    def _whole(self) -> bytes:
        content = self.path.read_bytes() if self.path.exists() else b""
        return content[: content.rfind(b"\n") + 1]

    def _drop_torn_line(self) -> None:
        whole = self._whole()
        if self.path.exists() and self.path.stat().st_size != len(whole):
            write_atomic(self.path, whole)
