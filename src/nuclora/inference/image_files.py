"""Which image files a command line means: files, folders and globs."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nuclora.data.images import IMAGE_SUFFIXES
from nuclora.data.walk import is_junk, walk
from nuclora.errors import NucloraError
from nuclora.io.kinds import OWN_ENDINGS
from nuclora.io.slides import SLIDE_SUFFIXES

SUFFIXES: Final = IMAGE_SUFFIXES | {".webp"} | SLIDE_SUFFIXES

# A slide in DICOM is a folder of files, a level each: only who names one of them says that it is one slide.
_DICOM = ".dcm"
_KINDS = "PNG, JPEG, TIFF, BMP, WebP or slide"


@dataclass(frozen=True)
class ImageFile:
    """An image to be predicted.

    Attributes:
        name: What its outputs are called: the file's name without suffix; of a file deeper in a folder its POSIX path
            from there.
        path: The file.
    """

    name: str
    path: Path


def find_images(inputs: Sequence[str | Path], *, recursive: bool = False, unique: bool = True) -> list[ImageFile]:
    """Find the images that some inputs mean.

    Of folders and globs only files with an image's suffix are taken, none that `nuclora predict` wrote, and no DICOM. A
    file that several inputs name is taken once.

    Args:
        inputs: Files, folders, and globs (``*``, ``?``, ``[...]``, and ``**`` for folders of any depth).
        recursive: Look into the folders of folders too.
        unique: Refuse images of equal names, whose outputs would take each other's place.

    Returns:
        The images in the order of the inputs, sorted by path within one.

    Raises:
        NucloraError: An input means no image, or two images would be written under one name.
    """
    found: dict[tuple[Path, str], ImageFile] = {}
    for one in inputs:
        for image in _expand(str(one), recursive):
            # Files of several names may be links to one, where equal files are stored once.
            found.setdefault((image.path.resolve(), image.path.name), image)
    images = list(found.values())
    if unique:
        _refuse_equal_names(images)
    return images


def _expand(given: str, recursive: bool) -> list[ImageFile]:
    if not given:
        # A shell's variable that is not set; as a path it would be the current folder.
        raise NucloraError("an input is empty", mend="name a file, a folder or a glob")
    path = Path(given)
    if path.is_dir():
        return _of_folder(path, recursive)
    if path.exists():
        if not path.is_file():
            # Reading a pipe would wait for a writer for ever.
            raise NucloraError("neither a file nor a folder", path=path, mend="name an image file")
        if path.suffix.lower() not in SUFFIXES:
            raise NucloraError(f"not an image by its suffix '{path.suffix}'", path=path, mend=f"convert it to {_KINDS}")
        return [ImageFile(path.stem, path)]
    if glob.has_magic(given):
        matches = sorted(Path(match) for match in glob.glob(given, recursive=True))  # noqa: PTH207
        images = [ImageFile(match.stem, match) for match in matches if _is_image(match)]
        if not images:
            raise NucloraError(
                f"{len(matches)} files match, none an image", path=given, mend=_mend(matches, f"name {_KINDS} files")
            )
        return images
    raise NucloraError("no such file or folder", path=path, mend="check the path")


def _of_folder(folder: Path, recursive: bool) -> list[ImageFile]:
    files = sorted(walk(folder, SUFFIXES | {_DICOM}, depth=None) if recursive else folder.iterdir())
    images = [ImageFile(path.relative_to(folder).with_suffix("").as_posix(), path) for path in files if _is_image(path)]
    if not images:
        deeper = not recursive and any(_is_image(path) for path in folder.glob("*/*"))
        mend = (
            "give --recursive: there are some in its folders" if deeper else _mend(files, f"put {_KINDS} files there")
        )
        raise NucloraError("no image in this folder", path=folder, mend=mend)
    return images


def _mend(files: Sequence[Path], usual: str) -> str:
    is_dicom = any(file.suffix.lower() == _DICOM for file in files)
    return "name one file of each DICOM slide" if is_dicom else usual


def _is_image(path: Path) -> bool:
    own = path.name.lower().endswith((*OWN_ENDINGS, _DICOM))
    # A link to no file is told of where it is read, and not left out in silence.
    is_there = path.is_file() or (path.is_symlink() and not path.exists())
    return path.suffix.lower() in SUFFIXES and not own and not is_junk(path) and is_there


def _refuse_equal_names(images: Sequence[ImageFile]) -> None:
    seen: dict[str, Path] = {}
    for image in images:
        # Windows and macOS take names that differ in case only for the same file.
        other = seen.setdefault(image.name.casefold(), image.path)
        if other is not image.path:
            raise NucloraError(
                f"its outputs would have the names of those of {other}",
                path=image.path,
                mend="rename one, or predict them into different folders with -o",
            )
