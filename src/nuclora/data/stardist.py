"""Reader of StarDist's folders: ``images/X.tif`` with ``masks/X.tif``, in one folder or in ``train/`` and ``test/``.

Reference:
    https://github.com/stardist/stardist, examples/2D/1_data.ipynb
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from nuclora.data.images import IMAGE_SUFFIXES, LABEL_SUFFIXES
from nuclora.data.pairs import composed, group_of, pair, tile_name
from nuclora.data.tiles import Listing, Tile
from nuclora.data.walk import is_junk, walk
from nuclora.errors import NucloraError

NAME = "stardist"

IMAGES, MASKS = "images", "masks"


def looks_like(root: Path) -> bool:
    """Whether there is a folder with images and masks of the same stems."""
    return any(
        {composed(path.stem) for path in walk(folder / IMAGES, IMAGE_SUFFIXES)}
        & {composed(path.stem) for path in walk(folder / MASKS, LABEL_SUFFIXES)}
        for folder in _folders(root)
    )


def list_tiles(root: Path) -> Listing:
    """Find the images and their label maps."""
    tiles, faults = [], []
    for folder in _folders(root):
        if lacking := [needed for needed in (IMAGES, MASKS) if not (folder / needed).is_dir()]:
            mend = f"add it, or remove {folder.name} if it is no part of the data set"
            faults.append(NucloraError(f"no folder '{lacking[0]}'", path=folder, mend=mend))
            continue
        images, masks = list(walk(folder / IMAGES, IMAGE_SUFFIXES)), list(walk(folder / MASKS, LABEL_SUFFIXES))
        found = pair(
            images,
            masks,
            "label map",
            image_key=partial(tile_name, root=folder / IMAGES),
            label_key=partial(tile_name, root=folder / MASKS),
        )
        faults += found.faults
        tiles += [
            Tile(tile_name(image, root), group_of(image.relative_to(root)), image, labels)
            for image, labels in found.pairs
        ]
    return Listing(root, NAME, tuple(tiles), tuple(faults))


def _folders(root: Path) -> list[Path]:
    """The root, if it has both of the folders, and the folders in it that have one at least."""
    inner = sorted(entry for entry in root.iterdir() if entry.is_dir() and not is_junk(entry))
    whole = [root] if (root / IMAGES).is_dir() and (root / MASKS).is_dir() else []
    return whole + [folder for folder in inner if (folder / IMAGES).is_dir() or (folder / MASKS).is_dir()]
