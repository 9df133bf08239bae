"""The outputs of a slide, streamed from its parts: none needs memory that grows with the slide."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import tifffile
from numpy.typing import NDArray

from nuclora.files import atomic_file
from nuclora.inference.blocks import Block
from nuclora.inference.canvas import Canvas
from nuclora.inference.parts import Parts
from nuclora.io.coco import annotation, write_coco
from nuclora.io.geojson import Ring, feature, write_features
from nuclora.io.overlay import OUTLINE_COLOURS, draw_rings, write_picture
from nuclora.io.parquet import write_parquet
from nuclora.io.pyramid import overlap
from nuclora.io.tables import measure_nuclei, write_rows
from nuclora.io.zarr import Grid, write_zarr

OVERVIEW_SIDE: Final = 4096
"""The overlay's longer side has at most so many pixels."""

_TILE = 512
# Parts that are held at once while label tiles are written: a tile meets four at most.
_HELD = 8


def write_table(path: Path, parts: Parts) -> None:
    """Write the measurements of all nuclei as CSV.

    Args:
        path: The file.
        parts: All parts of the slide.
    """

    def rows() -> Iterator[tuple[Any, ...]]:
        for _, before, found in parts.numbered():
            columns = found.columns | {"label": found.columns["label"] + before}
            yield from zip(*(columns[name].tolist() for name in header), strict=True)

    header = list(_nothing())
    write_rows(path, header, rows())


def write_measurements(path: Path, parts: Parts) -> None:
    """Write the measurements of all nuclei as Parquet, a row group a block.

    Args:
        path: The file.
        parts: All parts of the slide.
    """

    def tables() -> Iterator[dict[str, NDArray[Any]]]:
        empty = True
        for _, before, found in parts.numbered():
            # Of a block without nuclei the columns have no types to speak of.
            if found.outlines:
                empty = False
                yield found.columns | {"label": found.columns["label"].astype(np.int64) + before}
        if empty:
            yield _nothing()

    write_parquet(path, tables())


def _nothing() -> dict[str, NDArray[Any]]:
    """The columns of a table without nuclei."""
    nothing = np.zeros((1, 1), dtype=np.int32)
    return measure_nuclei(np.zeros((1, 1, 3), dtype=np.uint8), nothing, np.empty(0, dtype=np.float32), 1.0)


def write_nuclei(path: Path, canvas: Canvas, parts: Parts) -> None:
    """Write all nuclei as GeoJSON, in the pixels that QuPath counts: of level 0, from where the scan begins.

    Args:
        path: The file.
        canvas: Where they lie.
        parts: All parts of the slide.
    """
    corner = np.array(canvas.slide.scanned)
    found = (
        feature(label, [ring - corner for ring in rings], score, area, canvas.microns_per_pixel)
        for label, rings, score, area in _nuclei(parts)
    )
    write_features(path, found)


def write_annotations(path: Path, canvas: Canvas, parts: Parts) -> None:
    """Write all nuclei as COCO JSON, in pixels of level 0.

    Args:
        path: The file.
        canvas: Where they lie.
        parts: All parts of the slide.
    """
    slide = canvas.slide
    found = (annotation(*nucleus) for nucleus in _nuclei(parts))
    write_coco(path, slide.path.name, (slide.height, slide.width), found)


def _nuclei(parts: Parts) -> Iterator[tuple[int, list[Ring], float, float]]:
    """Id, outline, score and area of each nucleus."""
    for _, before, found in parts.numbered():
        scores, areas = found.columns["score"].tolist(), found.columns["area_px"].tolist()
        for label, (rings, score, area) in enumerate(zip(found.outlines, scores, areas, strict=True), before + 1):
            yield label, rings, score, round(area, 4)


def write_labels(path: Path, canvas: Canvas, blocks: Sequence[Block], parts: Parts) -> None:
    """Write the label map of a canvas as a tiled, losslessly compressed BigTIFF of int32.

    Args:
        path: The file.
        canvas: The canvas, whose pixels the map's are.
        blocks: The blocks that it was cut into.
        parts: All parts of the slide.
    """
    read = _label_reader(blocks, parts)
    height, width = canvas.shape
    tiles = (
        read(range(top, top + _TILE), range(left, left + _TILE))
        for top in range(0, height, _TILE)
        for left in range(0, width, _TILE)
    )
    density = 1e4 / (canvas.microns_per_pixel * canvas.scale)
    with atomic_file(path) as file:
        tifffile.imwrite(
            file,
            tiles,
            shape=canvas.shape,
            dtype=np.int32,
            bigtiff=True,
            tile=(_TILE, _TILE),
            compression="zlib",
            photometric="minisblack",
            resolution=(density, density),
            resolutionunit="CENTIMETER",
            metadata=None,
            maxworkers=1,
        )


def write_store(path: Path, canvas: Canvas, blocks: Sequence[Block], parts: Parts) -> None:
    """Write a canvas and its label map as OME-Zarr, in microns of the whole slide.

    Args:
        path: The store.
        canvas: The canvas, whose pixels the store's are.
        blocks: The blocks that it was cut into.
        parts: All parts of the slide.
    """
    step = canvas.microns_per_pixel * canvas.scale
    top, left = (
        (corner - 0.5) * canvas.microns_per_pixel + step / 2 for corner in (canvas.region.top, canvas.region.left)
    )
    grid = Grid(*canvas.shape, step, (top, left))
    write_zarr(path, canvas.slide.path.name, grid, canvas.read, _label_reader(blocks, parts))


def _label_reader(blocks: Sequence[Block], parts: Parts) -> Callable[[range, range], NDArray[np.int32]]:
    """Reads rows and columns of the label map: int32 (rows, columns). Rows are best asked for in order."""
    before = parts.before()

    @functools.lru_cache(_HELD)
    def labels(index: int) -> tuple[tuple[int, int], NDArray[np.int32]]:
        found = parts.read(index)
        return found.origin, np.where(found.labels > 0, found.labels + before[index], 0).astype(np.int32)

    @functools.lru_cache(1)
    def in_row(rows: range) -> list[Block]:
        return [block for block in blocks if block.index in before and _meet(block.framed[0], rows)]

    def read(rows: range, columns: range) -> NDArray[np.int32]:
        tile = np.zeros((len(rows), len(columns)), dtype=np.int32)
        for block in in_row(rows):
            if _meet(block.framed[1], columns):
                _paint(tile, (rows.start, columns.start), *labels(block.index))
        return tile

    return read


def write_overview(path: Path, canvas: Canvas, parts: Parts) -> None:
    """Write the region as a PNG with the outlines of its nuclei, as large as level 0 or as a screen can show.

    Args:
        path: The file.
        canvas: The canvas.
        parts: All parts of the slide.
    """
    region = canvas.region
    scale = max(1.0, max(region.width, region.height) / OVERVIEW_SIDE)
    picture = canvas.slide.read(*region, scale)
    corner = np.array([region.left, region.top])
    for _, before, found in parts.numbered():
        for label, rings in enumerate(found.outlines, before + 1):
            colour = OUTLINE_COLOURS[label % len(OUTLINE_COLOURS)]
            draw_rings(picture, [(ring - corner) / scale for ring in rings], colour)
    write_picture(path, picture)


def _meet(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def _paint(tile: NDArray[np.int32], place: tuple[int, int], origin: tuple[int, int], labels: NDArray[np.int32]) -> None:
    here, there = overlap(place, tile.shape, origin, labels.shape)
    part = tile[here]
    # Nuclei of two blocks meet only where one is wider than the halo: the first keeps the pixel.
    np.copyto(part, labels[there], where=part == 0)
