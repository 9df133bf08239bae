"""Reader of a plain folder: ``images/`` and ``labels/`` with files of the same stem."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

from nuclora.data.images import IMAGE_SUFFIXES, LABEL_SUFFIXES
from nuclora.data.pairs import by_name, composed, unread_masks
from nuclora.data.tiles import NO_GROUP, Listing, Tile
from nuclora.data.walk import walk
from nuclora.errors import NucloraError

NAME = "folder"
LAYOUT = "images/X.png with labels/X.png|tif|npy (and ignore/X.png), or images/ORGAN/X.png with labels/ORGAN/X.png"

IMAGES = "images"
LABELS = "labels"
IGNORE = "ignore"


def looks_like(root: Path) -> bool:
    """Whether the folder has both subfolders, and a label map of some kind."""
    return (root / IMAGES).is_dir() and any(walk(root / LABELS, LABEL_SUFFIXES, depth=None))


def list_tiles(root: Path) -> Listing:
    """Find the tiles of a plain folder.

    The first folder under ``images/`` is the group; a tile's name is the image's path under ``images/``
    without suffix. Files of other kinds are left alone, except label maps, images and masks in an unfit format.

    Raises:
        NucloraError: ``images/`` or ``labels/`` is missing.
    """
    for needed in (IMAGES, LABELS):
        if not (root / needed).is_dir():
            raise NucloraError(f"no folder '{needed}'", path=root, mend=f"lay the tiles out as {LAYOUT}")
    images, broken_images, faults = _by_name(root / IMAGES, IMAGE_SUFFIXES)
    labels, broken_labels, label_faults = _by_name(root / LABELS, LABEL_SUFFIXES)
    ignores, _, ignore_faults = _by_name(root / IGNORE, LABEL_SUFFIXES)
    faults += label_faults + ignore_faults
    tiles = []
    for key, image in images.items():
        name = _name(image, root / IMAGES)
        if key in labels:
            group = name.split("/")[0] if "/" in name else NO_GROUP
            tiles.append(Tile(name, group, image, labels[key], ignores.get(key)))
        elif key not in broken_labels:
            faults.append(_missing(root / LABELS, name, image, "label map for this image"))
    for kind, place, files in (("label map", LABELS, labels), ("ignore mask", IGNORE, ignores)):
        faults += [
            _missing(root / IMAGES, _name(path, root / place), path, f"image for this {kind}")
            for key, path in files.items()
            if key not in images and key not in broken_images
        ]
    others = (
        path
        for path in sorted(walk(root / IGNORE, None, depth=None))
        if path.is_file() and path.suffix.lower() not in LABEL_SUFFIXES
    )
    faults += unread_masks(others, ignores, images, partial(_name, folder=root / IGNORE))
    return Listing(root, NAME, tuple(tiles), tuple(faults))


def _by_name(folder: Path, suffixes: Collection[str]) -> tuple[dict[str, Path], set[str], list[NucloraError]]:
    """Files by their names, the names of what is none (links to nothing), and errors for these and the doubled ones."""
    name_of = partial(_name, folder=folder)
    paths = sorted(walk(folder, suffixes, depth=None))
    found, faults = by_name((path for path in paths if path.is_file()), name_of)
    broken = [path for path in paths if not path.is_file()]
    faults += [NucloraError("no file, or a link to none", path=path, mend="put the file there") for path in broken]
    return found, {composed(name_of(path)) for path in broken}, faults


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _missing(folder: Path, name: str, path: Path, what: str) -> NucloraError:
    nearby = folder / Path(name).parent
    stem = composed(Path(name).name)
    shown = Path(folder.name, name).parent.as_posix()
    other = sorted(entry.name for entry in nearby.iterdir() if composed(entry.stem) == stem) if nearby.is_dir() else []
    if other:
        allowed = LABEL_SUFFIXES if folder.name == LABELS else IMAGE_SUFFIXES
        if folders := [entry for entry in other if Path(entry).suffix.lower() in allowed]:
            told = f"no {what}: {shown}/{folders[0]} is a folder, not a file"
            return NucloraError(told, path=path, mend="put the file there")
        kinds = ", ".join(sorted(suffix[1:] for suffix in allowed))
        return NucloraError(f"no {what}: {shown}/{other[0]} is none of {kinds}", path=path, mend="convert it")
    return NucloraError(f"no {what}", path=path, mend=f"add {folder.name}/{name} with its suffix, or remove this file")
