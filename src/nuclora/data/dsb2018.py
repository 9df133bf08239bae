"""Reader of one mask file a nucleus, as in the 2018 Data Science Bowl: ``ID/images/ID.png`` with ``ID/masks/*.png``.

Overlaps: see `nuclora.data.polygons`. The magnifications differ and are not stated, so no microns per pixel are
declared.

Reference:
    Caicedo et al., Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl, Nature Methods 16
    (2019). https://bbbc.broadinstitute.org/BBBC038
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nuclora.data.images import IMAGE_SUFFIXES, LABEL_SUFFIXES, image_shape, read_mask
from nuclora.data.pairs import composed, group_of
from nuclora.data.polygons import Pixels, draw
from nuclora.data.tiles import Files, Listing, Tile, Truth, require_shape
from nuclora.data.walk import is_junk, walk
from nuclora.errors import NucloraError

NAME = "dsb2018"

IMAGES, MASKS = "images", "masks"


def looks_like(root: Path) -> bool:
    """Whether there is a folder of one image whose masks have other names than it."""
    for folder in _folders(root):
        images = [composed(path.stem) for path in walk(folder / IMAGES, IMAGE_SUFFIXES)]
        if len(images) == 1 and (folder / MASKS).is_dir():
            masks = {composed(path.stem) for path in walk(folder / MASKS, LABEL_SUFFIXES)}
            if masks:
                return images[0] not in masks
    return False


def list_tiles(root: Path) -> Listing:
    """Find the folders, right under the root or one level deeper (``stage1_train/ID``)."""
    tiles, faults = [], []
    for folder in _folders(root):
        images = list(walk(folder / IMAGES, IMAGE_SUFFIXES))
        if len(images) != 1:
            reason = f"{len(images)} images where one is expected"
            faults.append(NucloraError(reason, path=folder / IMAGES, mend="keep one image a folder"))
        elif not (folder / MASKS).is_dir():
            mend = f"add it, or remove {folder.name} if it has no truth"
            faults.append(NucloraError(f"no folder '{MASKS}'", path=folder, mend=mend))
        else:
            faults += [
                NucloraError("a mask of a type that is not read", path=path, mend="convert it to PNG")
                for path in walk(folder / MASKS, IMAGE_SUFFIXES - LABEL_SUFFIXES)
            ]
            place = folder.relative_to(root)
            tiles.append(Tile(place.as_posix(), group_of(place), images[0], folder / MASKS, source=MaskFiles()))
    return Listing(root, NAME, tuple(tiles), tuple(faults))


@dataclass(frozen=True)
class MaskFiles(Files):
    """Labels from the files of a folder, one mask each: what is not zero is the nucleus."""

    def truth(self, tile: Tile) -> Truth:
        """Read the masks; ids count the files by name."""
        shape = image_shape(tile.image)
        nuclei: list[Pixels] = []
        for path in walk(tile.labels, LABEL_SUFFIXES):
            mask = read_mask(path)
            require_shape(path, mask.shape, shape)
            nuclei.append(np.flatnonzero(mask))
        return draw(nuclei, shape)


def _folders(root: Path) -> list[Path]:
    found = []
    for entry in sorted(root.iterdir()):
        if entry.is_dir() and not is_junk(entry):
            inner = [entry, *sorted(item for item in entry.iterdir() if item.is_dir() and not is_junk(item))]
            found += [folder for folder in inner if (folder / IMAGES).is_dir() or (folder / MASKS).is_dir()]
    return found
