"""Reader of PanNuke: three folds of tiles in NumPy arrays.

Each fold has ``images.npy`` (N, 256, 256, 3), ``masks.npy`` (N, 256, 256, 6) and ``types.npy`` (N,), the tissue, which
becomes the group. The first five channels of a mask are instance ids of a class each, the sixth is the background;
classes are ignored. All tiles are at 40x, .25 microns per pixel. The arrays are mapped into memory, and only a tile's
part is read.

References:
    Gamper et al., PanNuke dataset extension, insights and baselines, arXiv:2003.10778 (2020).
    https://warwick.ac.uk/fac/cross_fac/tia/data/pannuke
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuclora.data.images import guard, open_array
from nuclora.data.pairs import pair
from nuclora.data.tiles import NO_GROUP, Listing, Tile, Truth
from nuclora.data.walk import walk
from nuclora.errors import NucloraError

NAME = "pannuke"

IMAGES, MASKS, TYPES = "images.npy", "masks.npy", "types.npy"
CLASSES = 5
MICRONS_PER_PIXEL = 0.25

_FOLD = re.compile(r"(?:fold|part)[ _-]*(\d+)", re.IGNORECASE)
_MEND = "unpack the fold again"


def looks_like(root: Path) -> bool:
    """Whether there are arrays of images and of masks."""
    names = {path.name for path in walk(root, {".npy"})}
    return {IMAGES, MASKS} <= names


def list_tiles(root: Path) -> Listing:
    """Find the folds, as published (``Fold 1/images/fold1``) or with the three files in a folder each.

    Where a folder does not say which fold it is, all are numbered in their order, and taken for no published ones.
    Folds numbered from 0 are not the published ones either, which count from 1.
    """
    tiles: list[Tile] = []
    arrays = list(walk(root, {".npy"}))
    fold_of = functools.partial(_fold, root=root)
    pairs, faults = pair(
        [path for path in arrays if path.name == IMAGES],
        [path for path in arrays if path.name == MASKS],
        MASKS,
        fold_of,
        fold_of,
    )
    folds = [fold_of(images) for images, _ in pairs]
    published = all(folds) and all(int(fold) for fold in folds)
    for number, ((images, masks), fold) in enumerate(zip(pairs, folds, strict=True), start=1):
        try:
            tiles += _fold_tiles(images, masks, int(fold) if all(folds) else number, published=published)
        except NucloraError as error:
            faults.append(error)
    return Listing(root, NAME, tuple(tiles), tuple(faults))


@dataclass(frozen=True)
class ArrayEntry:
    """One entry of the arrays of a fold."""

    index: int

    def image(self, tile: Tile) -> NDArray[np.uint8]:
        """Read the image; the published arrays are of floats that are whole numbers."""
        values = np.array(open_array(tile.image)[self.index])
        if not (_are_whole(values) and values.min() >= 0 and values.max() <= 255):
            reason = f"tile {tile.name}: pixel values that are not whole numbers of 0 to 255"
            raise NucloraError(reason, path=tile.image, mend=_MEND)
        pixels: NDArray[np.uint8] = values.astype(np.uint8)
        return pixels

    def truth(self, tile: Tile) -> Truth:
        """Read the ids: 1 to n, by class, then by the class's own ids; of a pixel in two classes the first counts."""
        values = np.array(open_array(tile.labels)[self.index, :, :, :CLASSES])
        if not (_are_whole(values) and values.min() >= 0):
            raise NucloraError(f"tile {tile.name}: masks that are not ids", path=tile.labels, mend=_MEND)
        labels = np.zeros(values.shape[:2], dtype=np.int32)
        count = 0
        for channel in np.moveaxis(values, 2, 0):
            ids, places = np.unique(channel, return_inverse=True)
            numbers = np.where(ids > 0, count + np.cumsum(ids > 0), 0)
            labels = np.where(labels > 0, labels, numbers[places.reshape(channel.shape)]).astype(np.int32)
            count += int((ids > 0).sum())
        return Truth(labels)


def _are_whole(values: NDArray[Any]) -> bool:
    return bool(np.isfinite(values).all()) and np.array_equal(values, np.rint(values))


def _fold(path: Path, root: Path) -> str:
    """Number of a fold, by the last part of the path that has it; empty where none has."""
    numbers = [
        found[1] for part in (root.resolve().name, *path.relative_to(root).parts) if (found := _FOLD.search(part))
    ]
    return numbers[-1] if numbers else ""


def _fold_tiles(images: Path, masks: Path, fold: int, *, published: bool) -> list[Tile]:
    for path in (images, masks):
        if (dtype := open_array(path).dtype).kind not in "buif":
            raise NucloraError(f"an array of {dtype}, not of numbers", path=path, mend=_MEND)
    shape = open_array(images).shape
    if len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
        raise NucloraError(f"an array of shape {shape}, not (tiles, height, width, 3)", path=images, mend=_MEND)
    expected = (*shape[:3], CLASSES + 1)
    if (found := open_array(masks).shape) != expected:
        raise NucloraError(f"an array of shape {found} where the images ask for {expected}", path=masks, mend=_MEND)
    types = images.with_name(TYPES)
    groups = [NO_GROUP] * shape[0]
    if types.is_file():
        tissues = open_array(types)
        if tissues.ndim != 1 or tissues.dtype.kind not in "US":
            told = f"an array of {tissues.dtype} of shape {tissues.shape}, not one name a tile"
            raise NucloraError(told, path=types, mend=_MEND)
        groups = [str(group) or NO_GROUP for group in guard(lambda _: tissues.astype(np.str_), types)]
        if len(groups) != shape[0]:
            raise NucloraError(f"{len(groups)} tissues for {shape[0]} images", path=types, mend=_MEND)
    return [
        Tile(
            name=f"fold{fold}/{index:04d}",
            group=group,
            image=images,
            labels=masks,
            source=ArrayEntry(index),
            microns_per_pixel=MICRONS_PER_PIXEL,
            fold=fold if published else None,
        )
        for index, group in enumerate(groups)
    ]
