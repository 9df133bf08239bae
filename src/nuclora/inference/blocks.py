"""A canvas cut into blocks: each finds its own nuclei, and together they find those of the whole, once.

A block is a core and a halo around it. The maps of both are those of the whole canvas, bit for bit, because windows
stand on one lattice (see :mod:`nuclora.inference.windows`). The block decodes them, and keeps the nuclei whose middle
lies in its core: a nucleus across the border of two cores is seen whole by both, and kept by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nuclora.data.targets import STRIDE
from nuclora.inference.canvas import Canvas
from nuclora.inference.predictor import Maps, Nuclei, Predictor
from nuclora.inference.windows import Part, seen_pixels, spans
from nuclora.io.geojson import Ring, outline
from nuclora.io.tables import measure_nuclei
from nuclora.recipe import EvaluateSettings

STEPS: Final = (4, 2)
"""A block is so many steps of the lattice high and wide.

Blocks of a row hand on the windows that they share, so the height alone says how many are predicted twice, and both say
how much memory a block takes.
"""

HALO: Final = 128
"""Pixels of the canvas around a core; a nucleus of up to this width is whole, with as much around its middle."""

_DECIMALS = 3


@dataclass(frozen=True)
class Block:
    """A part of a canvas, in its pixels.

    Attributes:
        index: Its number, in reading order.
        rows: Of the core.
        columns: Of the core.
        shape: Height and width of the canvas.
        lattice: Side of a window, and the overlap of neighbours.
    """

    index: int
    rows: range
    columns: range
    shape: tuple[int, int]
    lattice: tuple[int, int]

    @property
    def framed(self) -> tuple[range, range]:
        """Rows and columns of core and halo."""
        rows, columns = (
            range(max(core.start - HALO, 0), min(core.stop + HALO, length))
            for core, length in zip((self.rows, self.columns), self.shape, strict=True)
        )
        return rows, columns

    @property
    def seen(self) -> tuple[range, range]:
        """Rows and columns that its windows see."""
        rows, columns = (
            seen_pixels(length, *self.lattice, _cells(part))
            for part, length in zip(self.framed, self.shape, strict=True)
        )
        return rows, columns

    @property
    def part(self) -> Part:
        """The maps of core and halo, made of the pixels that its windows see."""
        rows, columns = self.framed
        origin = self.seen[0].start, self.seen[1].start
        return Part(self.shape, origin, _cells(rows), _cells(columns))

    def windows(self) -> list[tuple[int, int]]:
        """First row and column of each of its windows."""
        rows, columns = (
            spans(length, *self.lattice, _cells(part)) for part, length in zip(self.framed, self.shape, strict=True)
        )
        return [(row.start, column.start) for row in rows for column in columns]


class Found(NamedTuple):
    """The nuclei that a block owns.

    Attributes:
        origin: Row and column of `labels` in the canvas.
        labels: int32 (h, w), 1..n; just large enough to hold them.
        columns: Their measurements as in :func:`nuclora.io.tables.measure_nuclei`, places and lengths in pixels of
            level 0.
        outlines: The rings of each, in pixels of level 0.
    """

    origin: tuple[int, int]
    labels: NDArray[np.int32]
    columns: dict[str, NDArray[Any]]
    outlines: list[list[Ring]]


def plan_blocks(shape: tuple[int, int], lattice: tuple[int, int], steps: tuple[int, int] = STEPS) -> Iterator[Block]:
    """Cut a canvas into blocks, in reading order.

    Borders lie in the middle of what one window alone sees, as far from other windows as can be: with its halo a block
    of h x w steps needs (h + 1) x (w + 1) windows.

    Args:
        shape: Height and width of the canvas.
        lattice: Side of a window, and the overlap of neighbours.
        steps: See :data:`STEPS`.
    """
    window, margin = lattice
    step = window - margin
    first = window // 2 // STRIDE * STRIDE
    cuts = []
    for length, count in zip(shape, steps, strict=True):
        # What is left at the end is part of the last block unless it is a step or more.
        borders = [0, *range(first + (count - 1) * step, length - step + 1, count * step), length]
        cuts.append([range(*pair) for pair in itertools.pairwise(borders)])
    for row, rows in enumerate(cuts[0]):
        for column, columns in enumerate(cuts[1]):
            yield Block(row * len(cuts[1]) + column, rows, columns, shape, lattice)


def find_nuclei(
    block: Block,
    maps: Maps,
    pixels: NDArray[np.uint8],
    predictor: Predictor,
    settings: EvaluateSettings,
    canvas: Canvas,
) -> Found:
    """Decode a block, and measure the nuclei that it owns.

    Args:
        block: The block.
        maps: Of core and halo.
        pixels: RGB, of what its windows see.
        predictor: The model that made the maps.
        settings: How to decode.
        canvas: Where the block lies.
    """
    rows, columns = block.framed
    nuclei = own(predictor.decode_maps(maps, (len(rows), len(columns)), settings), block)
    seen = block.seen
    image = pixels[
        rows.start - seen[0].start : rows.stop - seen[0].start,
        columns.start - seen[1].start : columns.stop - seen[1].start,
    ]
    held = _bounds(nuclei.labels)
    origin = rows.start + held[0].start, columns.start + held[1].start
    labels = nuclei.labels[held]
    microns = canvas.microns_per_pixel * canvas.scale
    measured = measure_nuclei(image[held], labels, nuclei.scores, microns)
    return Found(origin, labels, _at_level_0(measured, origin, canvas), list(_outlines(labels, origin, canvas)))


def own(nuclei: Nuclei, block: Block) -> Nuclei:
    """Of the nuclei of core and halo those whose middle lies in the core, numbered anew in their order.

    Args:
        nuclei: Labels (h, w) of core and halo, and scores.
        block: The block.
    """
    count = len(nuclei.scores)
    areas = np.bincount(nuclei.labels.ravel(), minlength=count + 1)[1:]
    owned = np.ones(count, dtype=bool)
    cores, framed = (block.rows, block.columns), block.framed
    for axis, (core, frame) in enumerate(zip(cores, framed, strict=True)):
        # In whole numbers, so that all blocks that see a nucleus agree on its middle.
        places = np.broadcast_to(np.expand_dims(np.arange(len(frame)), 1 - axis), nuclei.labels.shape)
        sums = np.rint(np.bincount(nuclei.labels.ravel(), places.ravel(), count + 1)[1:]).astype(np.int64)
        middle = (2 * sums + areas) // (2 * areas) + frame.start
        owned &= (middle >= core.start) & (middle < core.stop)
    numbers = np.concatenate([[0], np.where(owned, np.cumsum(owned), 0)]).astype(np.int32)
    return Nuclei(numbers[nuclei.labels], nuclei.scores[owned])


def _cells(pixels: range) -> range:
    return range(pixels.start // STRIDE, -(-pixels.stop // STRIDE))


def _bounds(labels: NDArray[np.int32]) -> tuple[slice, slice]:
    found = ndimage.find_objects((labels > 0).astype(np.uint8))
    # One pixel of background where there is no nucleus: measurements of nothing have their columns all the same.
    bounds: tuple[slice, slice] = found[0] if found else (slice(0, 1), slice(0, 1))
    return bounds


def _at_level_0(measured: dict[str, NDArray[Any]], origin: tuple[int, int], canvas: Canvas) -> dict[str, NDArray[Any]]:
    scale = canvas.scale
    corner = canvas.region.top, canvas.region.left
    changed = {
        # The centre of the first pixel is (0, 0), at either scale.
        name: corner[axis] + (origin[axis] + measured[name] + 0.5) * scale - 0.5
        for axis, name in enumerate(("centroid_y", "centroid_x"))
    }
    if scale != 1:
        changed |= {"area_px": measured["area_px"] * scale**2, "perimeter_px": measured["perimeter_px"] * scale}
    return measured | changed


def _outlines(labels: NDArray[np.int32], origin: tuple[int, int], canvas: Canvas) -> Iterator[list[Ring]]:
    corner = np.array([canvas.region.left, canvas.region.top])
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        rings = outline(labels[box] == label, (origin[1] + box[1].start, origin[0] + box[0].start))
        yield [np.round(corner + ring * canvas.scale, _DECIMALS) for ring in rings]
