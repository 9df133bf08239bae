"""Converting a data set of any format to NuInsSeg's layout or to a plain folder.

Images become PNG, label maps TIFF with the ids as they are (gaps included), ignore masks PNG; where the data set comes
with folds they go into ``folds.csv``. Every file is written whole or not at all, the label map of a tile last: a
conversion that was cut off goes on where it was. A hidden file in the new folder says what it is a conversion of; a
folder with anything else in it is refused.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from nuclora.data import folder, nuinsseg
from nuclora.data.folds import FoldRow, FoldTable, are_folds
from nuclora.data.tiles import NO_GROUP, Tile, TileSet
from nuclora.errors import NucloraError
from nuclora.files import disk_errors, hold, remove_torn, write_atomic

MARKER = ".nuclora-convert.json"
FOLDS = "folds.csv"

_UNFIT = re.compile(r'[<>:"|?*\\\x00-\x1f]')


class _Place(NamedTuple):
    """Where the parts of a tile go, and its name there."""

    name: str
    image: Path
    labels: Path
    ignore: Path


def convert_data(
    tiles: TileSet,
    dest: Path,
    to: Literal["nuinsseg", "folder"] = "folder",
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a data set in another layout.

    Args:
        tiles: The data set.
        dest: A new folder, or one that this conversion began.
        to: The layout.
        progress: Called after each tile with the number done and the number of all.

    Returns:
        Number of tiles written; those that were there already do not count.

    Raises:
        NucloraError: `dest` holds something else or lies in the data set, two tiles would have one name, a tile
            cannot be read, or the disk is full.
    """
    _refuse_nesting(tiles.root, dest)
    places = _places(tiles, dest, to)
    with disk_errors(dest):
        dest.mkdir(parents=True, exist_ok=True)
    with hold(dest, "conversion"):
        _claim(tiles, dest, to)
        written = 0
        for done, (tile, place) in enumerate(zip(tiles, places, strict=True), start=1):
            if not place.labels.exists():
                _write(tile, place)
                written += 1
            if progress is not None:
                progress(done, len(tiles))
        # Of a part of a data set the folds make no table.
        folds = [tile.fold for tile in tiles if tile.fold is not None]
        if len(folds) == len(tiles) and are_folds(set(folds)):
            rows = (
                FoldRow(place.name, place.name.split("/")[0] if "/" in place.name else NO_GROUP, fold)
                for place, fold in zip(places, folds, strict=True)
            )
            # In the order that the new folder will be listed in.
            FoldTable(tuple(sorted(rows, key=lambda row: f"{row.tile}.png"))).write(dest / FOLDS)
    return written


def _refuse_nesting(root: Path, dest: Path) -> None:
    here, there = root.resolve(), dest.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise NucloraError("lies in the data set, or the data set in it", path=dest, mend="name a folder elsewhere")


def _places(tiles: TileSet, dest: Path, to: str) -> list[_Place]:
    places: dict[str, Tile] = {}
    found = []
    for tile in tiles:
        group, stem = _fit(tile.group), tile.name.removeprefix(f"{tile.group}/")
        if to == nuinsseg.NAME:
            stem = _flat(stem)
            home = dest / group
            place = _Place(
                name=f"{group}/{stem}",
                image=home / nuinsseg.IMAGES / f"{stem}.png",
                labels=home / nuinsseg.LABELS / f"{stem}.tif",
                ignore=home / nuinsseg.VAGUE[0] / f"{stem}.png",
            )
        else:
            parts = [_flat(stem)] if tile.group == NO_GROUP else [group, *map(_fit, stem.split("/"))]
            name = "/".join(parts)
            place = _Place(
                name=name,
                image=dest / folder.IMAGES / f"{name}.png",
                labels=dest / folder.LABELS / f"{name}.tif",
                ignore=dest / folder.IGNORE / f"{name}.png",
            )
        # Some file systems do not tell cases apart.
        other = places.setdefault(place.name.lower(), tile)
        if other is not tile:
            raise NucloraError(
                f"the tiles {other.name} and {tile.name} would both be {place.name}",
                path=dest,
                mend="rename one of them",
            )
        found.append(place)
    return found


def _flat(name: str) -> str:
    return _fit(name.replace("/", "_"))


def _fit(part: str) -> str:
    """A name that every file system takes, and no reader passes over as litter."""
    fit = _UNFIT.sub("_", part.replace("/", "_")).rstrip(". ")
    return f"_{fit}" if not fit or fit.startswith((".", "__MACOSX")) else fit


def _claim(tiles: TileSet, dest: Path, to: str) -> None:
    """Mark the folder as this conversion's, if it is empty or was marked so."""
    content = json.dumps(
        {
            "from": str(tiles.root.resolve()),
            "format": tiles.format,
            "to": to,
            "tiles": len(tiles),
            "sha256": tiles.digest(),
        }
    )
    marker = dest / MARKER
    if marker.is_file():
        if marker.read_text("utf-8", errors="replace") != content:
            raise NucloraError(
                "holds a conversion of other data, or of these before they were changed",
                path=dest,
                mend="name a new folder",
            )
        remove_torn(dest, deep=True)
    elif any(entry.name != ".lock" and not entry.name.startswith(f".{MARKER}") for entry in dest.iterdir()):
        raise NucloraError("exists and is not an empty folder", path=dest, mend="name a new folder")
    else:
        write_atomic(marker, content)


def _write(tile: Tile, place: _Place) -> None:
    sample = tile.read()
    write_atomic(place.image, _png(sample.image))
    if sample.ignore.any():
        write_atomic(place.ignore, _png(sample.ignore.astype(np.uint8) * 255))
    # 16 bits where they do, because that is what the published tree has; the ids stay as they are.
    kind = np.uint16 if sample.labels.max(initial=0) < 1 << 16 else np.int32
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, sample.labels.astype(kind), compression="zlib")
    write_atomic(place.labels, buffer.getvalue())


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
