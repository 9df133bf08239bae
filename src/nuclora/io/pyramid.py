"""Whole slides: pictures too large to be read at once, of which any rectangle can be read at any scale.

Lengths and places are in pixels of level 0, the finest of the levels that a file holds; the first pixel covers 0..1.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nuclora.errors import NucloraError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Pixels = NDArray[np.uint8]

GLASS: Final = 255
# A level this much coarser than asked for still does: 2.0005 is what a level of half the size measures at odd widths.
_SLACK = 1.01
# Places are rounded to this share of a pixel, far below what can be seen. So a pixel of the result has the same
# weights, and so the same value, whichever rectangle it is read in.
_GRAIN = 4096
# Level pixels, one way, that are resampled at once; bounds memory, not results.
_AT_ONCE = 2048


class Level(NamedTuple):
    """One resolution of a slide.

    Attributes:
        width: In its own pixels.
        height: In its own pixels.
    """

    width: int
    height: int


class Slide(abc.ABC):
    """A slide that is open; a context manager.

    Attributes:
        path: The file.
        levels: Its levels, the finest first.
        microns_per_pixel: Of level 0, where known.
        identity: What tells it from another slide where its pixels lie in more files than `path`; else empty.
        scanned: Column and row of level 0 where what was scanned begins. Viewers that show only that (QuPath) count
            pixels from there.
    """

    scanned: tuple[int, int] = (0, 0)

    def __init__(self, path: Path, levels: list[Level], microns_per_pixel: float | None, identity: str = "") -> None:
        self.path = path
        self.levels = levels
        self.microns_per_pixel = microns_per_pixel
        self.identity = identity

    @property
    def width(self) -> int:
        """In pixels of level 0."""
        return self.levels[0].width

    @property
    def height(self) -> int:
        """In pixels of level 0."""
        return self.levels[0].height

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abc.abstractmethod
    def close(self) -> None:
        """Close the file."""

    @abc.abstractmethod
    def read_level(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        """Read a rectangle of a level, in its own pixels, that lies inside of it: uint8 RGB (height, width, 3)."""

    def read(self, left: float, top: float, width: float, height: float, scale: float = 1.0) -> Pixels:
        """Read a rectangle at some scale.

        It is read from the coarsest level that is fine enough. A smaller picture is made by the mean over the area of
        each of its pixels, a larger one by bilinear interpolation.

        Args:
            left: First column, in pixels of level 0; may lie outside of the slide, and between pixels.
            top: First row.
            width: In pixels of level 0.
            height: In pixels of level 0.
            scale: Pixels of level 0 for each pixel of the result.

        Returns:
            uint8 RGB (round(height / scale), round(width / scale), 3), at least one pixel each way; white where the
            slide has ended.

        Raises:
            NucloraError: The file is damaged there.
        """
        shape = max(1, round(height / scale)), max(1, round(width / scale))
        level = self._level_for(scale)
        result = np.empty((*shape, 3), dtype=np.uint8)
        ratio = scale * self.levels[level].width / self.width
        side = max(1, int(_AT_ONCE / ratio))
        for rows, columns in _rectangles(shape, side):
            axes = (
                _axis(top, scale, rows, self.height, self.levels[level].height),
                _axis(left, scale, columns, self.width, self.levels[level].width),
            )
            result[rows.start : rows.stop, columns.start : columns.stop] = self._sample(level, *axes)
        return result

    def _level_for(self, scale: float) -> int:
        fine = [
            index for index, level in enumerate(self.levels) if self.width / level.width <= scale * _SLACK or index == 0
        ]
        return max(fine, key=lambda index: self.width / self.levels[index].width)

    def _sample(self, level: int, rows: _Axis, columns: _Axis) -> Pixels:
        pixels = self._padded(level, rows.source, columns.source)
        if rows.weights is None and columns.weights is None:
            return pixels
        values: NDArray[Any] = pixels.astype(np.float32)
        if rows.weights is not None:
            values = (rows.weights @ values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])
        if columns.weights is not None:
            turned = np.ascontiguousarray(values.swapaxes(0, 1))
            values = (columns.weights @ turned.reshape(len(turned), -1)).reshape(-1, *turned.shape[1:]).swapaxes(0, 1)
        resampled: Pixels = np.rint(values).astype(np.uint8)
        return resampled

    def _padded(self, level: int, rows: range, columns: range) -> Pixels:
        """A rectangle of a level that may reach beyond it."""
        size = self.levels[level]
        top, left = max(rows.start, 0), max(columns.start, 0)
        height, width = min(rows.stop, size.height) - top, min(columns.stop, size.width) - left
        pixels = np.full((len(rows), len(columns), 3), GLASS, dtype=np.uint8)
        if height > 0 and width > 0:
            there = np.s_[
                top - rows.start : top - rows.start + height, left - columns.start : left - columns.start + width
            ]
            pixels[there] = self._read_safely(level, left, top, width, height)
        return pixels

    def _read_safely(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        try:
            return self.read_level(level, left, top, width, height)
        except MemoryError:
            raise
        # Decoders raise whatever the damaged bytes lead them to.
        except Exception as error:
            down, across = self.height / self.levels[level].height, self.width / self.levels[level].width
            place = ",".join(str(round(value)) for value in (left * across, top * down, width * across, height * down))
            what = " ".join(str(error).split()) or type(error).__name__
            raise NucloraError(
                f"cannot be read at {place} (x,y,width,height: {what[:120]})",
                path=self.path,
                mend="the file is damaged: get it again, or name a sound part of it with --region",
            ) from error


class _Axis(NamedTuple):
    """How the pixels of a result come from those of a level along one axis: as they are where there are no weights."""

    source: range
    weights: csr_array | None


def _axis(start: float, scale: float, wanted: range, length: int, of_level: int) -> _Axis:
    """The weights of some pixels of a result.

    Args:
        start: Where the result begins, in level 0.
        scale: Pixels of level 0 for each of the result's.
        wanted: Which of the result's pixels.
        length: Of the axis, in level 0.
        of_level: Of the axis, in the level that is read.
    """
    from scipy.sparse import csr_array

    step = scale * of_level / length
    edges = (start + np.arange(wanted.start, wanted.stop + 1) * scale) * of_level / length
    edges = np.rint(edges * _GRAIN) / _GRAIN
    if step == 1 and edges[0] % 1 == 0:
        return _Axis(range(int(edges[0]), int(edges[-1])), None)
    if step > 1:
        first, last = edges[:-1], edges[1:]
    else:
        # A pixel as wide as the level's, around the same middle: its overlaps are the bilinear weights.
        middle = (edges[:-1] + edges[1:]) / 2
        first, last = middle - 0.5, middle + 0.5
    source = range(math.floor(first[0]), math.ceil(last[-1]))
    reach = int(np.ceil((last - first).max())) + 1
    index = np.floor(first).astype(np.int64)[:, None] + np.arange(reach)
    overlap = np.clip(np.minimum(index + 1, last[:, None]) - np.maximum(index, first[:, None]), 0, None)
    # Glass is what lies wholly beyond the level; mixed into its outermost pixels it would make a bright rim.
    is_inside = (index >= 0) & (index < of_level)
    is_beyond = (edges[1:] <= 0) | (edges[:-1] >= of_level)
    overlap[is_inside == is_beyond[:, None]] = 0
    overlap /= overlap.sum(axis=1, keepdims=True)
    rows, columns = np.nonzero(overlap)
    weights = csr_array(
        (overlap[rows, columns].astype(np.float32), (rows, index[rows, columns] - source.start)),
        shape=(len(wanted), len(source)),
    )
    return _Axis(source, weights)


def overlap(
    origin: tuple[int, int], shape: tuple[int, ...], place: tuple[int, int], part: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where two rectangles meet; empty slices where they do not.

    Args:
        origin: Row and column of the first one's first pixel.
        shape: Its height and width; what follows them is not looked at.
        place: Row and column of the second one's first pixel.
        part: Its height and width.

    Returns:
        Their common rows and columns, counted from the first one's first pixel and from the second one's.
    """
    here, there = [], []
    for begin, length, at, of_part in zip(origin, shape, place, part, strict=False):
        first = max(begin, at)
        stop = max(first, min(begin + length, at + of_part))
        here.append(slice(first - begin, stop - begin))
        there.append(slice(first - at, stop - at))
    return (here[0], here[1]), (there[0], there[1])


def _rectangles(shape: tuple[int, int], side: int) -> Iterator[tuple[range, range]]:
    for top in range(0, shape[0], side):
        for left in range(0, shape[1], side):
            yield range(top, min(top + side, shape[0])), range(left, min(left + side, shape[1]))
