"""Hashes of the images that are predicted, remembered so that a file which has not changed is not read again for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from nuclora.inference.provenance import hash_file

# What file systems keep of a time (FAT: two seconds). A file that changed so shortly before it was read may have
# changed once more since, at what is the same time to them.
_GRAIN_NS: Final = 2_000_000_000


class Stamp(NamedTuple):
    """What tells a file that has not changed: a change of its content changes at least one of these.

    Attributes:
        size: In bytes.
        mtime_ns: When its content was changed.
        ctime_ns: When its content, times or owner were changed: programs that copy a file with its old time cannot set
            this one.
    """

    size: int
    mtime_ns: int
    ctime_ns: int


class Hashed(NamedTuple):
    """A file's hash.

    Attributes:
        sha256: The hash; empty where the file cannot be read.
        stamp: What tells that it still holds; None where nothing would.
    """

    sha256: str
    stamp: Stamp | None


def read_hash(path: Path) -> Hashed:
    """Hash a file.

    Args:
        path: The file; one that cannot be read is told of where it is read in earnest.
    """
    began = time.time_ns()
    stamp = _stamp_of(path)
    sha256 = hash_file(path)
    is_sure = stamp is not None and stamp == _stamp_of(path) and max(stamp[1:]) + _GRAIN_NS < began
    return Hashed(sha256, stamp if sha256 and is_sure else None)


class KnownHashes:
    """The hashes that earlier commands have read.

    Args:
        remember: Keeps a note of one, JSON values only.
    """

    def __init__(self, remember: Callable[[dict[str, Any]], None]) -> None:
        self._remember = remember
        self._known: dict[str, Hashed] = {}

    def restore(self, note: Mapping[str, Any]) -> None:
        """Take up what was remembered.

        Raises:
            TypeError, KeyError: It is no such note.
        """
        stamp = Stamp(*note["stamp"])
        if not isinstance(note["file"], str) or not isinstance(note["sha256"], str) or set(map(type, stamp)) != {int}:
            raise TypeError(f"no note of a hash: {note}")
        self._known[note["file"]] = Hashed(note["sha256"], stamp)

    def notes(self) -> list[dict[str, Any]]:
        """What there is to be remembered."""
        return [_note(file, hashed) for file, hashed in self._known.items()]

    def recall(self, path: Path) -> str | None:
        """The hash of a file that has not changed since it was read; None where it is to be read."""
        hashed = self._known.get(_key(path))
        return hashed.sha256 if hashed and hashed.stamp == _stamp_of(path) else None

    def add(self, path: Path, hashed: Hashed) -> None:
        """Remember a hash, where that may be.

        Raises:
            NucloraError: The disk is full.
        """
        if hashed.stamp and self._known.get(_key(path)) != hashed:
            self._remember(_note(_key(path), hashed))
            self._known[_key(path)] = hashed


def _stamp_of(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _key(path: Path) -> str:
    return str(path.resolve())


def _note(file: str, hashed: Hashed) -> dict[str, Any]:
    return {"file": file, "sha256": hashed.sha256, "stamp": hashed.stamp}
