"""Fetching public data sets: safe unpacking, and NuInsSeg from Zenodo."""

from __future__ import annotations

import json
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from nuclora.data import nuinsseg
from nuclora.data.download import PATIENCE, Progress, download, require_space
from nuclora.errors import NucloraError
from nuclora.files import disk_errors, hold_file, place_of_new, unreadable

ZENODO = "https://zenodo.org"
RECORD = 10518968
ARCHIVE = "NuInsSeg.zip"

# Far over the data set, far under what fills a cluster's disk.
MAX_BYTES = 64 << 30
MAX_FILES = 500_000

_CHUNK = 1 << 20


def unpack_zip(archive: Path, dest: Path, *, max_bytes: int, max_files: int, progress: Progress | None = None) -> Path:
    """Unpack a ZIP archive into a new folder, whole or not at all.

    Args:
        archive: The archive.
        dest: Folder that must not exist, or be empty; not the current one.
        max_bytes: Largest sum of the unpacked sizes.
        max_files: Largest number of entries.
        progress: Told the bytes done and the bytes of all.

    Returns:
        `dest`, with links resolved.

    Raises:
        NucloraError: Damaged or encrypted, over a limit, an entry that would leave `dest`, a link, a folder
            with something in it, or a full disk.
    """
    dest = place_of_new(dest)
    damaged = "delete it and download it again"
    try:
        with zipfile.ZipFile(archive) as source:
            entries = [(info, _safe_path(info, archive)) for info in source.infolist() if not info.is_dir()]
            total = sum(info.file_size for info, _ in entries)
            if total > max_bytes or len(entries) > max_files:
                raise NucloraError(
                    f"{len(entries)} files and {total} bytes, over the limits of {max_files} and {max_bytes}",
                    path=archive,
                    mend="unpack it by hand if you trust it",
                )
            with disk_errors(dest):
                dest.parent.mkdir(parents=True, exist_ok=True)
                # One name, so that what a kill leaves goes with the next try.
                temporary = dest.with_name(f".{dest.name}.scratch")
                if temporary.exists():
                    shutil.rmtree(temporary)
                temporary.mkdir()
            try:
                require_space(dest.parent, total)
                _extract(source, entries, temporary, total, progress)
                with disk_errors(dest):
                    temporary.replace(dest)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise unreadable(archive, error) from error
    # RuntimeError: encrypted, or packed in a way that Python does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise NucloraError(f"not a whole ZIP archive ({error})", path=archive, mend=damaged) from error
    return dest


def fetch_nuinsseg(
    dest: Path, progress: Callable[[str, int, int | None], None] | None = None, *, base_url: str | None = None
) -> Path:
    """Download and unpack NuInsSeg (CC BY 4.0) from its Zenodo record.

    Size and checksum come from the record itself, so that they hold whatever its version.

    Args:
        dest: New folder for the tree; it may exist if it is empty and not the current one.
        progress: Told what is going on ("download" or "unpack"), the bytes done and the bytes of all.
        base_url: Address of the server; Zenodo's by default.

    Returns:
        `dest`, with links resolved.

    Raises:
        NucloraError: See `download` and `unpack_zip`; another process that takes too long; or the archive holds no
            NuInsSeg tree.
    """
    other = "name a new folder, or look at this one with `nuclora data check`"
    dest = place_of_new(dest, other)
    base_url = base_url or ZENODO
    size, md5 = _zenodo_entry(base_url)
    # Hidden: NAME.zip may be a download of the user's own.
    archive = dest.with_name(f".{dest.name}.download.zip")
    url = f"{base_url}/records/{RECORD}/files/{ARCHIVE}?download=1"
    with disk_errors(dest):
        dest.parent.mkdir(parents=True, exist_ok=True)
    # Of two at once the second would remove what the first unpacks.
    with hold_file(archive, "data set", PATIENCE):
        place_of_new(dest, other)
        download(url, archive, md5=md5, size=size, progress=_phase(progress, "download"))
        unpack_zip(archive, dest, max_bytes=MAX_BYTES, max_files=MAX_FILES, progress=_phase(progress, "unpack"))
        if not nuinsseg.looks_like(dest):
            raise NucloraError(f"the archive holds no NuInsSeg tree: {nuinsseg.LAYOUT}", path=dest)
        archive.unlink()
    return dest


def _phase(progress: Callable[[str, int, int | None], None] | None, name: str) -> Progress | None:
    return None if progress is None else lambda done, total: progress(name, done, total)


def _zenodo_entry(base_url: str) -> tuple[int, str]:
    url = f"{base_url}/api/records/{RECORD}"
    with tempfile.TemporaryDirectory() as folder:
        answer = download(url, Path(folder) / "record.json").read_bytes()
    try:
        entries = {entry["key"]: entry for entry in json.loads(answer)["files"]}
        size = int(entries[ARCHIVE]["size"])
        kind, _, checksum = str(entries[ARCHIVE]["checksum"]).partition(":")
        if kind != "md5" or not re.fullmatch("[0-9a-fA-F]{32}", checksum):
            raise ValueError(f"checksum {kind}")
    except (ValueError, KeyError, TypeError) as error:
        raise NucloraError(
            f"Zenodo's record does not tell size and checksum of {ARCHIVE} ({type(error).__name__}: {error})",
            path=url,
            mend="try again later, or download and unpack it with a browser",
        ) from error
    return size, checksum


def _safe_path(info: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    """The entry's path inside the destination; archives made on Windows may have backslashes."""
    name = info.filename.replace("\\", "/")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive:
        raise _unsafe(archive, f"{info.filename!r} would leave the destination")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        raise _unsafe(archive, f"{info.filename!r} is a link or device")
    return path


def _unsafe(archive: Path, reason: str) -> NucloraError:
    return NucloraError(f"unsafe archive: {reason}", path=archive, mend="do not trust where it came from")


def _extract(
    source: zipfile.ZipFile,
    entries: Sequence[tuple[zipfile.ZipInfo, PurePosixPath]],
    folder: Path,
    total: int,
    progress: Progress | None,
) -> None:
    done = 0
    for info, path in entries:
        target = folder / path
        with source.open(info) as packed:
            with disk_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                # "x": of two entries of one name, the second may not replace the first.
                file = target.open("xb")
            with file:
                # zipfile stops at the size that the entry declares, which the limits have counted.
                while chunk := packed.read(_CHUNK):
                    with disk_errors(target):
                        file.write(chunk)
                    done += len(chunk)
        if progress is not None:
            progress(done, total)
