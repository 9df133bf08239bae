"""Labelled tiles: where they are (`Tile`), how they are read (`Source`), their pixels (`Sample`), and sets of them."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nuclora.data.images import read_image, read_labels, read_mask
from nuclora.data.walk import walk
from nuclora.errors import NucloraError
from nuclora.files import digest_file, unreadable

NO_GROUP = "all"
"""Group of tiles that lie in no organ's folder."""


@dataclass(frozen=True)
class Sample:
    """Pixels of one tile.

    Attributes:
        image: RGB, (H, W, 3).
        labels: Instance ids, (H, W), 0 background; gaps and ids of several components are allowed.
        ignore: Where the truth is unknown, (H, W).
        drawn: Nuclei that were drawn into the labels, see `Truth`.
        regions: Annotations that were taken for regions, see `Truth`.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.int32]
    ignore: NDArray[np.bool_]
    drawn: int | None = None
    regions: int = 0


@dataclass(frozen=True)
class Truth:
    """What is known of a tile beside its image.

    Attributes:
        labels: Instance ids, (H, W), 0 background.
        ignore: Where the truth is unknown, (H, W); None where nothing is ignored.
        drawn: Nuclei of the file, where outlines or masks of single ones are drawn into the labels: one may be left
            without a pixel. None where the file holds labels.
        regions: Annotations of the file that are taken for regions, not for nuclei.
    """

    labels: NDArray[np.int32]
    ignore: NDArray[np.bool_] | None = None
    drawn: int | None = None
    regions: int = 0


class Source(Protocol):
    """How the pixels of a tile are read.

    It travels to the loader's processes with its tile, and there is one for each tile: so it is a frozen dataclass that
    holds what tells the tile from others in the same file, and no pixels.
    """

    def image(self, tile: Tile) -> NDArray[np.uint8]:
        """Read the image, (H, W, 3)."""
        ...

    def truth(self, tile: Tile) -> Truth:
        """Read labels and ignore mask, without decoding the image."""
        ...


@dataclass(frozen=True)
class Files:
    """The image, the label map and the ignore mask are a file each, or none."""

    def image(self, tile: Tile) -> NDArray[np.uint8]:
        """Read the image, (H, W, 3)."""
        return read_image(tile.image)

    def truth(self, tile: Tile) -> Truth:
        """Read labels and ignore mask."""
        return Truth(read_labels(tile.labels), None if tile.ignore is None else read_mask(tile.ignore))


@dataclass(frozen=True)
class Tile:
    """Files of one labelled tile, and what is known of it.

    Attributes:
        name: Unique in its set, POSIX, without suffix: ``human liver/human_liver_01``.
        group: The organ, or `NO_GROUP`.
        image: Image file; several tiles may share one (PanNuke).
        labels: File or folder of the labels; several tiles may share one (COCO).
        ignore: Mask file, or None where there is none.
        source: How the pixels are read.
        microns_per_pixel: Side of a pixel, where the format or the data set knows it.
        fold: Fold from 1 that the data set's authors put it in, where they did.
    """

    name: str
    group: str
    image: Path
    labels: Path
    ignore: Path | None = None
    source: Source = Files()
    microns_per_pixel: float | None = None
    fold: int | None = None

    def read(self) -> Sample:
        """Read and validate the pixels.

        Raises:
            NucloraError: A file is missing, damaged or of the wrong kind, or the shapes differ.
        """
        image = self.source.image(self)
        truth = self.source.truth(self)
        require_shape(self.labels, truth.labels.shape, image.shape[:2])
        ignore = np.zeros(image.shape[:2], dtype=np.bool_) if truth.ignore is None else truth.ignore
        require_shape(self.ignore or self.labels, ignore.shape, image.shape[:2])
        return Sample(image, truth.labels, ignore, truth.drawn, truth.regions)

    def read_truth(self) -> Truth:
        """Read labels and ignore mask alone: decoding the image is often most of the work.

        Raises:
            NucloraError: A file is missing, damaged or of the wrong kind.
        """
        return self.source.truth(self)


@dataclass(frozen=True)
class TileSet:
    """Tiles of one data set, sorted by the POSIX path of the image relative to the root, then by name."""

    root: Path
    format: str
    tiles: tuple[Tile, ...]

    def __len__(self) -> int:
        return len(self.tiles)

    def __iter__(self) -> Iterator[Tile]:
        return iter(self.tiles)

    def __getitem__(self, key: int | str) -> Tile:
        """The tile at a position, or of a name.

        Raises:
            NucloraError: No tile has this name.
        """
        if isinstance(key, int):
            return self.tiles[key]
        try:
            return self._by_name[key]
        except KeyError:
            raise NucloraError(f"no tile named {key!r}", path=self.root) from None

    @cached_property
    def _by_name(self) -> dict[str, Tile]:
        return {tile.name: tile for tile in self.tiles}

    def digest(self) -> str:
        """What tells the tiles from others wherever they lie: SHA-256 of their names, groups and files.

        Raises:
            NucloraError: A file cannot be read.
        """
        hashes: dict[Path, str] = {}
        digest = hashlib.sha256()
        for tile in self.tiles:
            parts = [tile.name, tile.group]
            for path in filter(None, (tile.image, tile.labels, tile.ignore)):
                if path not in hashes:
                    # Several tiles may share a file, which may have gigabytes.
                    hashes[path] = _hash(path)
                parts.append(hashes[path])
            digest.update(json.dumps(parts).encode())
        return digest.hexdigest()

    @property
    def names(self) -> list[str]:
        """Names of the tiles in order."""
        return [tile.name for tile in self.tiles]

    @property
    def groups(self) -> list[str]:
        """Distinct groups in alphabetical order."""
        return sorted({tile.group for tile in self.tiles})

    def subset(self, names: Iterable[str]) -> TileSet:
        """The tiles of these names, in the order of the names.

        Raises:
            NucloraError: No tile has one of these names.
        """
        return TileSet(self.root, self.format, tuple(self[name] for name in names))


@dataclass(frozen=True)
class Listing:
    """What a format's reader finds in a folder: complete tiles, and what keeps others from being so.

    Attributes:
        root: Folder that the tiles' order is relative to; may lie one level under the one asked for.
        format: Name of the format.
        tiles: Tiles in any order.
        faults: One error for each missing or doubled file and each name that no table can hold.
    """

    root: Path
    format: str
    tiles: tuple[Tile, ...]
    faults: tuple[NucloraError, ...]

    def sorted_tiles(self) -> tuple[Tile, ...]:
        """Tiles sorted by the POSIX path of the image relative to the root, then by name."""
        return tuple(sorted(self.tiles, key=lambda tile: (tile.image.relative_to(self.root).as_posix(), tile.name)))

    def tile_set(self) -> TileSet:
        """The tiles as a set.

        Raises:
            NucloraError: Files are missing or doubled, or there is no tile.
        """
        if self.faults:
            first, more = self.faults[0], len(self.faults) - 1
            others = f" (and {counted(more, 'more fault')}: see `nuclora data check`)" if more else ""
            raise NucloraError(first.reason + others, path=first.path, mend=first.mend)
        if not self.tiles:
            raise NucloraError(f"no tiles in this folder of format {self.format}", path=self.root)
        return TileSet(self.root, self.format, self.sorted_tiles())


def _hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of those below a folder."""
    if path.is_dir():
        files = sorted(walk(path, None, None))
        inside = [(file.relative_to(path).as_posix(), _hash(file)) for file in files]
        return hashlib.sha256(json.dumps(inside).encode()).hexdigest()
    try:
        return digest_file(path)
    except OSError as error:
        raise unreadable(path, error) from error


def counted(number: int, noun: str) -> str:
    """A number and its noun, in the plural where it takes one: "1 tile", "2 tiles"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def name_faults(tiles: Iterable[Tile], root: Path) -> list[NucloraError]:
    """One error for each name that cannot stand in a line of a table: line breaks, control characters, broken UTF-8."""
    return [
        # Not the file as path: it would break the error's line as well.
        NucloraError(f"a line break or control character in the name {tile.name!a}", path=root, mend="rename it")
        for tile in tiles
        if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in tile.name)
    ]


def doubled_faults(tiles: Iterable[Tile]) -> list[NucloraError]:
    """One error for each tile whose name an earlier one has."""
    names: dict[str, Tile] = {}
    return [
        NucloraError(
            f"another tile has the name {tile.name!a}",
            path=tile.image,
            mend="rename one of them",
        )
        for tile in tiles
        if names.setdefault(tile.name, tile) is not tile
    ]


def require_shape(path: Path, shape: tuple[int, ...], image_shape: tuple[int, ...]) -> None:
    """Refuse labels or a mask of another size than the image's.

    Raises:
        NucloraError: The sizes differ.
    """
    if shape != image_shape:
        raise NucloraError(
            f"{shape[0]}x{shape[1]} pixels (height x width) where its image has {image_shape[0]}x{image_shape[1]}",
            path=path,
            mend="export image and labels at the same size",
        )
