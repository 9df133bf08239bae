"""Finding the files of a data set, and which image and which labels belong together."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from nuclora.data.images import IMAGE_SUFFIXES
from nuclora.data.tiles import NO_GROUP
from nuclora.data.walk import walk
from nuclora.errors import NucloraError
from nuclora.io.kinds import OWN_ENDINGS

# Folders that say what is in them, or which part of a split, are no groups of tiles.
_CONTENTS = {"image", "images", "img", "imgs", "tissue_images", "label", "labels", "mask", "masks", "annotations"}
_SPLIT = re.compile(r"(?:stage\d+[ _-])?(train|training|test|testing|val|valid|validation|fold)[ _-]*(\d*)")
# Pictures of the labels.
_OVERLAYS = frozenset({"overlay", "overlays"})


def find_images(root: Path, suffixes: Collection[str]) -> list[Path]:
    """Images under a folder, but for those in folders of overlays and what `nuclora predict` wrote beside images."""
    return [
        path
        for path in walk(root, suffixes)
        if not _OVERLAYS & {part.lower() for part in path.relative_to(root).parent.parts}
        and not path.name.lower().endswith(OWN_ENDINGS)
    ]


def tile_name(image: Path, root: Path) -> str:
    """The image's path under the root, POSIX, without suffix and without folders that only say what is in them."""
    *folders, file = image.relative_to(root).parts
    return "/".join([*(part for part in folders if _plain(part) not in _CONTENTS), Path(file).stem])


def group_of(relative: PurePath) -> str:
    """The first folder of a path that is neither part of a split (train, test) nor named for what is in it (images)."""
    for part in relative.parts[:-1]:
        if _plain(part) not in _CONTENTS and not _SPLIT.fullmatch(part.lower()):
            return part
    return NO_GROUP


def _plain(part: str) -> str:
    # COCO writes train2017, Lizard Lizard_Images1.
    return part.lower().replace(" ", "_").rstrip("0123456789").removeprefix("lizard_")


def unread_masks(
    paths: Iterable[Path], masks: Collection[str], images: Collection[str], name_of: Callable[[Path], str]
) -> list[NucloraError]:
    """One error for each file that seems to be an ignore mask and is of no type that is read.

    Args:
        paths: The files that were not read; notes and tables among them are left alone.
        masks: Names of the masks that were read, as they are compared: what lies beside one is no matter.
        images: Names of the images, likewise.
        name_of: The name of a file.
    """
    return [
        NucloraError("an ignore mask of a type that is not read", path=path, mend="convert it to PNG, or remove it")
        for path in paths
        if (name := composed(name_of(path))) not in masks and (name in images or path.suffix.lower() in IMAGE_SUFFIXES)
    ]


def composed(name: str) -> str:
    """A name as it is compared: a Mac packs an accent as a character of its own (NFD), others in one with its letter.

    What is shown and written is the name as it is on disk.
    """
    return unicodedata.normalize("NFC", name)


def by_name(paths: Iterable[Path], name_of: Callable[[Path], str]) -> tuple[dict[str, Path], list[NucloraError]]:
    """Files by their names as they are compared, and an error for each name of several."""
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for path in paths:
        found[composed(name_of(path))].append(path)
    doubled = [
        NucloraError(
            f"one of {len(files)} files of this stem ({', '.join(path.name for path in files)})",
            path=files[0],
            mend="keep one of them",
        )
        for files in found.values()
        if len(files) > 1
    ]
    return {name: files[0] for name, files in found.items()}, doubled


class Pairs(NamedTuple):
    """Images with their labels, and an error for each file that is alone or doubled."""

    pairs: list[tuple[Path, Path]]
    faults: list[NucloraError]


def pair(
    images: Sequence[Path],
    labels: Sequence[Path],
    what: str,
    image_key: Callable[[Path], str] = lambda path: path.stem,
    label_key: Callable[[Path], str] = lambda path: path.stem,
) -> Pairs:
    """Pair images and label files by their stems; of several of one stem those that share more folders belong together.

    Of those that share as many, those whose other folders have more equal names do. Files in different parts of a split
    (train, test) never do; nor do files in two groups, which are folders whose names both images and labels have.

    Args:
        images: Image files.
        labels: Label files.
        what: What a label file is, for errors: "XML file".
        image_key: What of an image's path to compare.
        label_key: What of a label file's path to compare.

    Returns:
        Pairs in the order of the images.
    """
    by_key: defaultdict[str, list[Path]] = defaultdict(list)
    for image in images:
        by_key[composed(image_key(image))].append(image)
    found: defaultdict[Path, list[Path]] = defaultdict(list)
    faults = []
    groups = _folders(images) & _folders(labels)
    for path in labels:
        candidates = [image for image in by_key[composed(label_key(path))] if not _is_elsewhere(image, path, groups)]
        if not candidates:
            faults.append(NucloraError(f"no image for this {what}", path=path, mend="add the image, or remove this"))
            continue
        near = [_nearness(image, path) for image in candidates]
        nearest = [image for image, nearness in zip(candidates, near, strict=True) if nearness == max(near)]
        if len(nearest) > 1:
            faults.append(_doubled(nearest, "image", path))
        for image in nearest:
            found[image].append(path)
    faults += [_doubled(paths, what, image) for image, paths in found.items() if len(paths) > 1]
    faults += [
        NucloraError(f"no {what} for this image", path=image, mend=f"add the {what}, or remove this")
        for image in images
        if image not in found
    ]
    return Pairs([(image, found[image][0]) for image in images if len(found[image]) == 1], faults)


def _folders(paths: Iterable[Path]) -> set[str]:
    """Names of the folders that files lie in, as they are compared, but for those that only say what is in them."""
    names = {composed(part.lower()) for folder in {path.parent for path in paths} for part in folder.parts}
    return {name for name in names if _plain(name) not in _CONTENTS}


def _is_elsewhere(one: Path, other: Path, groups: Collection[str]) -> bool:
    """Whether two files lie in different parts of a split, or in different groups."""
    own = _own_folders(one, other)
    splits = [list(filter(None, map(_SPLIT.fullmatch, folders))) for folders in own]
    for kind in (True, False):
        parts, others = ([part for part in found if (part[1] == "fold") is kind] for found in splits)
        if parts and others and not any(_is_same(mine, its) for mine, its in itertools.product(parts, others)):
            return True
    homes, theirs = ({folder for folder in folders if folder in groups} for folders in own)
    return bool(homes and theirs) and homes.isdisjoint(theirs)


def _is_same(part: re.Match[str], other: re.Match[str]) -> bool:
    """Whether two names are of one part of a split: "train" is that of "training" and of "train2017"."""
    return part[1][:3] == other[1][:3] and (not (part[2] and other[2]) or int(part[2]) == int(other[2]))


def _own_folders(one: Path, other: Path) -> tuple[list[str], list[str]]:
    """The folders of two files below those that they share, in lower case."""
    above = _shared(one, other)
    own, others = ([composed(part.lower()) for part in path.parts[above:-1]] for path in (one, other))
    return own, others


def _nearness(one: Path, other: Path) -> tuple[int, int]:
    """How many folders two files share, and of the others how many have equal names (`a/liver` and `b/liver`: 1)."""
    own, others = _own_folders(one, other)
    return _shared(one, other), len(set(own) & set(others))


def _shared(one: Path, other: Path) -> int:
    """How many folders two files share."""
    return len(Path(os.path.commonpath([composed(str(one)), composed(str(other))])).parts)


def _doubled(paths: Sequence[Path], what: str, partner: Path) -> NucloraError:
    above = Path(os.path.commonpath([path.parent for path in paths]))
    named = ", ".join(path.relative_to(above).as_posix() for path in paths[:3])
    return NucloraError(
        f"one of {len(paths)} {what}s ({named}) of {partner.name}", path=paths[0], mend="keep one of them"
    )
