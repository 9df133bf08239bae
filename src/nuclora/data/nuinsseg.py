"""Reader of the official NuInsSeg folder tree.

Reference:
    Mahbod et al., NuInsSeg: a fully annotated dataset for nuclei instance segmentation in H&E-stained
    histological images, Scientific Data 11, 295 (2024). https://doi.org/10.5281/zenodo.10518968
"""

from __future__ import annotations

from pathlib import Path

from nuclora.data.pairs import by_name, unread_masks
from nuclora.data.tiles import Listing, Tile
from nuclora.data.walk import is_junk
from nuclora.errors import NucloraError

NAME = "nuinsseg"
LAYOUT = "ORGAN/tissue images/X.png with ORGAN/label masks modify/X.tif"

IMAGES = "tissue images"
# "label masks" sums the ids where nuclei overlap, so it is never the truth.
LABELS = "label masks modify"
# The published tree names the folder of vague areas in three ways.
VAGUE = ("vague areas/mask binary", "mask binary_vague", "vague areas/mask binary_vague")


def looks_like(root: Path) -> bool:
    """Whether the folder, or one folder inside it, is a NuInsSeg tree."""
    return bool(_trees(root))


def list_tiles(root: Path) -> Listing:
    """Find the tiles of a NuInsSeg tree.

    Args:
        root: The folder of the organs, or a folder with just one such folder in it, which is what the
            published archive unpacks to.

    Raises:
        NucloraError: No such tree, or several of them.
    """
    if (root / IMAGES).is_dir():
        mend = f"name the folder above, {root.resolve().parent}"
        raise NucloraError(f"one organ's folder: it holds '{IMAGES}' itself", path=root, mend=mend)
    trees = _trees(root)
    if len(trees) != 1:
        found = (
            f"{len(trees)} NuInsSeg trees ({', '.join(tree.name for tree in trees)})" if trees else "no NuInsSeg tree"
        )
        raise NucloraError(f"{found}; expected {LAYOUT}", path=root, mend="name the folder that holds the organs")
    tiles: list[Tile] = []
    faults: list[NucloraError] = []
    organs = _organs(trees[0])
    for organ in organs:
        _list_organ(organ, tiles, faults)
    for folder in _folders(trees[0]):
        if folder not in organs:
            faults += _left_out(folder)
    return Listing(trees[0], NAME, tuple(tiles), tuple(faults))


def _trees(root: Path) -> list[Path]:
    if _organs(root):
        return [root]
    return [folder for folder in _folders(root) if _organs(folder)]


def _organs(root: Path) -> list[Path]:
    return [folder for folder in _folders(root) if (folder / IMAGES).is_dir() or (folder / LABELS).is_dir()]


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not is_junk(entry))


def _left_out(folder: Path) -> list[NucloraError]:
    """Errors for a folder beside the organs that seems to be one, or to hold some."""
    if organs := _organs(folder):
        told = f"organs of its own ({', '.join(organ.name for organ in organs[:3])}) beside those around it"
        return [NucloraError(told, path=folder, mend="move them up, or name one of the two folders")]
    return [
        NucloraError(f"not named '{needed}'", path=entry, mend="rename it")
        for entry in _folders(folder)
        for needed in (IMAGES, LABELS)
        if entry.name.lower() == needed
    ]


def _list_organ(organ: Path, tiles: list[Tile], faults: list[NucloraError]) -> None:
    for needed in (IMAGES, LABELS):
        if not (organ / needed).is_dir():
            faults.append(NucloraError(f"no folder '{needed}'", path=organ, mend="unpack the data set again"))
            return
    images = _files(organ / IMAGES, ".png", faults)
    labels = _files(organ / LABELS, ".tif", faults)
    vague = [_files(organ / folder, ".png", faults) for folder in VAGUE]
    for key, image in images.items():
        if key not in labels:
            mend = f"add {organ.name}/{LABELS}/{image.stem}.tif"
            faults.append(NucloraError("no label map for this image", path=image, mend=mend))
            continue
        ignore = [files[key] for files in vague if key in files]
        if len(ignore) > 1:
            reason = f"one of {len(ignore)} ignore masks of {image.name}"
            faults.append(NucloraError(reason, path=ignore[0], mend=f"keep one of them; another is {ignore[1]}"))
        tiles.append(Tile(f"{organ.name}/{image.stem}", organ.name, image, labels[key], next(iter(ignore), None)))
    for key, path in labels.items():
        if key not in images:
            mend = f"add {organ.name}/{IMAGES}/{path.stem}.png"
            faults.append(NucloraError("no image for this label map", path=path, mend=mend))
    for key, path in (item for files in vague for item in files.items()):
        if key not in images:
            mend = f"add {organ.name}/{IMAGES}/{path.stem}.png, or remove this file"
            faults.append(NucloraError("no image for this ignore mask", path=path, mend=mend))
    others = (path for folder in VAGUE for path in _entries(organ / folder) if path.suffix.lower() != ".png")
    faults += unread_masks(others, set().union(*vague), images, _stem)


def _files(folder: Path, suffix: str, faults: list[NucloraError]) -> dict[str, Path]:
    found, doubled = by_name((entry for entry in _entries(folder) if entry.suffix.lower() == suffix), _stem)
    faults += doubled
    return found


def _stem(path: Path) -> str:
    return path.stem


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not is_junk(entry)) if folder.is_dir() else []
