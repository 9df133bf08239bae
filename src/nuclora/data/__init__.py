"""Labelled tiles: formats, folds, checks, downloads, augmentation, synthetic data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from nuclora.data import (
    cellpose,
    coco,
    dsb2018,
    folder,
    matlab,
    monuseg,
    nuinsseg,
    pannuke,
    qupath,
    stardist,
)
from nuclora.data.tiles import Listing, Sample, Tile, TileSet, doubled_faults, name_faults
from nuclora.errors import NucloraError

__all__ = ["FORMATS", "Format", "Listing", "Sample", "Tile", "TileSet", "list_tiles", "open_tiles"]


@dataclass(frozen=True)
class Format:
    """How one kind of data set is recognised and read.

    Attributes:
        looks_like: Whether a folder seems to be of this format.
        list_tiles: Finds the tiles and the incomplete ones.
    """

    looks_like: Callable[[Path], bool]
    list_tiles: Callable[[Path], Listing]


FORMATS: dict[str, Format] = {
    module.NAME: Format(module.looks_like, module.list_tiles)
    for module in (nuinsseg, folder, monuseg, pannuke, matlab, coco, qupath, cellpose, stardist, dsb2018)
}
# Our own first: where one of them fits, what lies beside it (overlays, exports) is not taken for another data set.
_OWN = (nuinsseg.NAME, folder.NAME)
_OTHERS = tuple(name for name in FORMATS if name not in _OWN)


def open_tiles(root: str | Path, format: str | None = None) -> TileSet:
    """Open a labelled data set.

    Args:
        root: Folder of the data set.
        format: Name in `FORMATS`; by default the one that the folder looks like.

    Returns:
        The tiles, sorted by the POSIX path of the image relative to the root.

    Raises:
        NucloraError: No such folder, no known format, or tiles with missing or doubled files.
    """
    return list_tiles(root, format).tile_set()


def list_tiles(root: str | Path, format: str | None = None) -> Listing:
    """Find the tiles of a data set without refusing incomplete ones; see `open_tiles`.

    Raises:
        NucloraError: No such folder, or no known format.
    """
    root = Path(root)
    if not root.is_dir():
        mend = "unpack it and name the folder" if root.is_file() else "check the path"
        raise NucloraError("not a folder" if root.exists() else "no such folder", path=root, mend=mend)
    try:
        name = _look(root) if format is None else format
        if name not in FORMATS:
            raise NucloraError(f"no data format named {name!r}", mend=f"use one of {', '.join(FORMATS)}")
        listing = FORMATS[name].list_tiles(root)
        more = (*name_faults(listing.tiles, root), *doubled_faults(listing.tiles))
        return replace(listing, faults=(*listing.faults, *more))
    except OSError as error:
        raise NucloraError(f"cannot be listed ({error.strerror})", path=error.filename or root) from error


def _look(root: Path) -> str:
    for names in (_OWN, _OTHERS):
        fitting = [name for name in names if FORMATS[name].looks_like(root)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise NucloraError(f"looks like {' and '.join(fitting)}", path=root, mend="choose one with --format")
    # What is only begun: its reader says what is missing.
    if (root / nuinsseg.IMAGES).is_dir():
        return nuinsseg.NAME
    if (root / folder.IMAGES).is_dir() or (root / folder.LABELS).is_dir():
        return folder.NAME
    # What is damaged: its reader says which file.
    if matlab.looks_damaged(root):
        return matlab.NAME
    raise NucloraError(
        f"no labelled tiles found in any of {len(FORMATS)} layouts",
        path=root,
        mend="name the folder that holds images and labels, or say --format (docs/data.md shows the layouts)",
    )
