"""Reader of Cellpose's folders: ``X_masks.tif`` or ``X_cp_masks.png`` beside the image ``X.tif`` (or ``X_img.tif``).

``X_seg.npy``, which Cellpose's window saves, is a pickle: opening it may run any code. It is never opened. Where it is
all that an image has, it is refused with the way to save the masks as a label image.

Reference:
    https://cellpose.readthedocs.io/en/latest/outputs.html
"""

from __future__ import annotations

import re
from pathlib import Path

from nuclora.data.images import IMAGE_SUFFIXES, LABEL_SUFFIXES
from nuclora.data.pairs import find_images, group_of, pair, tile_name
from nuclora.data.tiles import Listing, Tile
from nuclora.data.walk import walk
from nuclora.errors import NucloraError

NAME = "cellpose"

_MASKS = re.compile(r"(?:_cp)?_masks$")
_IMAGE = re.compile(r"_img$")
# What else Cellpose writes beside an image.
_OUTPUTS = re.compile(
    r"_(?:cp_masks|masks|(?:cp_)?flows(?:_[0-2])?|(?:cp_)?cellprob|(?:cp_)?outlines|cp_output|dP|seg)$"
)
# Of those that get the masks' ending, which none is.
_NO_MASKS = re.compile(r"_(?:flows|dP|outlines|cp_output)_cp_masks$")
_SEG = "_seg.npy"


def looks_like(root: Path) -> bool:
    """Whether there are masks, or the pickles that stand for them."""
    return bool(_masks(root) or _pickles(root))


def list_tiles(root: Path) -> Listing:
    """Find the images and their masks."""
    images = [path for path in find_images(root, IMAGE_SUFFIXES) if not _OUTPUTS.search(path.stem)]
    pairs, faults = pair(images, _masks(root), "label image X_masks", _image_key, _label_key)
    pickled = {(path.parent, path.name.removesuffix(_SEG)): path for path in _pickles(root)}
    for index, fault in enumerate(faults):
        image = Path(fault.path or root)
        if image in images and (path := pickled.get((image.parent, image.stem))) is not None:
            faults[index] = NucloraError(
                "a pickle of Python objects, which may run any code when it is opened, so it is not read",
                path=path,
                mend="save the masks in Cellpose with File > Save masks as PNG/tif, or use cellpose --save_tif",
            )
    tiles = [Tile(tile_name(image, root), group_of(image.relative_to(root)), image, labels) for image, labels in pairs]
    return Listing(root, NAME, tuple(tiles), tuple(faults))


def _masks(root: Path) -> list[Path]:
    found = walk(root, LABEL_SUFFIXES)
    return [path for path in found if _MASKS.search(path.stem) and not _NO_MASKS.search(path.stem)]


def _pickles(root: Path) -> list[Path]:
    return [path for path in walk(root, {".npy"}) if path.name.endswith(_SEG)]


def _image_key(path: Path) -> str:
    return _IMAGE.sub("", path.stem)


def _label_key(path: Path) -> str:
    # X_img_cp_masks is what Cellpose itself makes of X_img.
    return _IMAGE.sub("", _MASKS.sub("", path.stem))
