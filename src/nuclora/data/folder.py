"""Reader of a plain folder: ``images/`` and ``labels/`` with files of the same stem."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from functools import partial
from pathlib import Path

from nuclora.data.images import IMAGE_SUFFIXES, LABEL_SUFFIXES
from nuclora.data.pairs import unread_masks, walk
from nuclora.data.tiles import NO_GROUP, Listing, Tile
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
    images, faults = _by_name(root / IMAGES, IMAGE_SUFFIXES)
    labels, label_faults = _by_name(root / LABELS, LABEL_SUFFIXES)
    ignores, ignore_faults = _by_name(root / IGNORE, LABEL_SUFFIXES)
    faults += label_faults + ignore_faults
    tiles = []
    for name, image in images.items():
        if name not in labels:
            faults.append(_missing(root / LABELS, name, image, "label map for this image"))
            continue
        group = name.split("/")[0] if "/" in name else NO_GROUP
        tiles.append(Tile(name, group, image, labels[name], ignores.get(name)))
    for kind, files in (("label map", labels), ("ignore mask", ignores)):
        faults += [
            _missing(root / IMAGES, name, files[name], f"image for this {kind}") for name in files if name not in images
        ]
    others = (
        path
        for path in sorted(walk(root / IGNORE, None, depth=None))
        if path.is_file() and path.suffix.lower() not in LABEL_SUFFIXES
    )
    faults += unread_masks(others, ignores, images, partial(_name, folder=root / IGNORE))
    return Listing(root, NAME, tuple(tiles), tuple(faults))


def _by_name(folder: Path, suffixes: Collection[str]) -> tuple[dict[str, Path], list[NucloraError]]:
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(walk(folder, suffixes, depth=None)):
        if path.is_file():
            found[_name(path, folder)].append(path)
    doubled = [
        NucloraError(
            f"one of {len(paths)} files of this stem ({', '.join(path.name for path in paths)})",
            path=paths[0],
            mend="keep one of them",
        )
        for paths in found.values()
        if len(paths) > 1
    ]
    return {name: paths[0] for name, paths in found.items()}, doubled


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _missing(folder: Path, name: str, path: Path, what: str) -> NucloraError:
    nearby = folder / Path(name).parent
    stem = Path(name).name
    shown = Path(folder.name, name).parent.as_posix()
    other = sorted(entry.name for entry in nearby.iterdir() if entry.stem == stem) if nearby.is_dir() else []
    if other:
        allowed = LABEL_SUFFIXES if folder.name == LABELS else IMAGE_SUFFIXES
        if broken := [entry for entry in other if Path(entry).suffix.lower() in allowed]:
            return NucloraError(
                f"no {what}: {shown}/{broken[0]} is no file, or a link to none",
                path=path,
                mend="put the file there",
            )
        kinds = ", ".join(sorted(suffix[1:] for suffix in allowed))
        return NucloraError(f"no {what}: {shown}/{other[0]} is none of {kinds}", path=path, mend="convert it")
    return NucloraError(f"no {what}", path=path, mend=f"add {folder.name}/{name} with its suffix, or remove this file")
