"""Walking through the folders of a data set: every reader, and the digest, see the same files."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from nuclora.errors import NucloraError

DEPTH = 6
"""So many folders under the root are looked into, where the layout does not say how many."""


def walk(root: Path, suffixes: Collection[str] | None, depth: int | None = DEPTH) -> Iterator[Path]:
    """Files of these suffixes under a folder, sorted within each folder; litter is left out.

    Links to folders are followed, but for those that lead back to a folder that they lie in.

    Args:
        root: The folder.
        suffixes: Suffixes in lower case; None is any.
        depth: So many folders under the root are looked into; None is all.

    Yields:
        The files of a folder before those of the folders in it; none if there is no such folder.

    Raises:
        NucloraError: A folder cannot be listed: left out in silence, its tiles would be missing.
    """
    for folder, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        place = Path(folder)
        deep = depth is not None and len(place.relative_to(root).parts) >= depth
        folders[:] = [] if deep else sorted(name for name in folders if _enters(place / name))
        for name in sorted(files):
            path = place / name
            if (suffixes is None or path.suffix.lower() in suffixes) and not is_junk(path):
                yield path


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        path = Path(error.filename)
        raise NucloraError(f"cannot be listed ({error.strerror})", path=path, mend="check its permissions") from error


def _enters(folder: Path) -> bool:
    if is_junk(folder):
        return False
    if not folder.is_symlink():
        return True
    # Of the folders as they were walked through, too: two links may lead to each other.
    real = folder.resolve()
    return not any(above.resolve().is_relative_to(real) for above in folder.parents)


def is_junk(path: Path) -> bool:
    """Whether a file or folder is the litter of a file manager (``._x``, ``__MACOSX``, ...)."""
    return path.name.startswith((".", "__MACOSX")) or path.name.lower() in {"thumbs.db", "desktop.ini"}
