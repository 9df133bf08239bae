"""An image and the label map of its nuclei as one OME-Zarr store, which napari opens one over the other.

NAME.zarr/                 OME-NGFF 0.5 (https://ngff.openmicroscopy.org/0.5/), Zarr format 3
  0, 1, 2, ...             the image, uint8 (c, y, x): each level half as large as the one before it
  labels/nuclei/0, 1, ...  the label map, int32 (y, x), in the same levels

The specification has labels belong to an image, and readers open a store by its image: labels alone would not open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nuclora.extras import require
from nuclora.files import atomic_folder

Read = Callable[[range, range], NDArray[Any]]

CHUNK: Final = 1024
"""Side of a chunk; a level of at most one chunk is the last."""

NAME: Final = "nuclei"
"""Of the label map in the store."""

_VERSION: Final = "0.5"
_WHITE: Final = 255


class Grid(NamedTuple):
    """Where the pixels of the finest level lie.

    Attributes:
        height: In pixels.
        width: In pixels.
        microns_per_pixel: None where it is not known.
        origin: y and x of the centre of the first pixel in microns; of no use where microns are not known.
    """

    height: int
    width: int
    microns_per_pixel: float | None
    origin: tuple[float, float] = (0.0, 0.0)


def write_zarr(path: Path, name: str, grid: Grid, pixels: Read, labels: Read) -> None:
    """Write an image and its label map as an OME-Zarr store, chunk by chunk and atomically.

    Coarser levels of the image are means of 2 x 2 pixels, those of the labels take one of the four. Equal
    arguments give equal bytes, with one version of zarr.

    Args:
        path: The store, a folder.
        name: Of the image, for the reader.
        grid: Where the pixels lie.
        pixels: Reads rows and columns of the image: uint8 RGB (rows, columns, 3).
        labels: Reads rows and columns of the label map: int32 (rows, columns), 0 background.

    Raises:
        NucloraError: zarr is not installed, the disk is full or the path cannot be written.
    """
    zarr = require("zarr", "OME-Zarr")
    with atomic_folder(path) as folder:
        root = zarr.create_group(folder, zarr_format=3, attributes=_image(name, grid))
        first = _create(root, 0, (3, grid.height, grid.width), np.uint8, _WHITE)
        for rows, columns in _chunks(grid.height, grid.width):
            first[:, rows.start : rows.stop, columns.start : columns.stop] = np.moveaxis(pixels(rows, columns), 2, 0)
        _add_levels(root, first, _mean, _WHITE)
        group = root.create_group("labels", attributes={"ome": {"version": _VERSION, "labels": [NAME]}})
        group = group.create_group(NAME, attributes=_label(grid))
        first = _create(group, 0, (grid.height, grid.width), np.int32, 0)
        for rows, columns in _chunks(grid.height, grid.width):
            first[rows.start : rows.stop, columns.start : columns.stop] = labels(rows, columns)
        _add_levels(group, first, lambda pixels: pixels[::2, ::2], 0)


def _add_levels(group: Any, finer: Any, shrink: Callable[[NDArray[Any]], NDArray[Any]], fill: int) -> None:
    """Add the coarser levels, each made of the one before it."""
    for level, (height, width) in enumerate(_sizes(*finer.shape[-2:])[1:], start=1):
        coarser = _create(group, level, (*finer.shape[:-2], height, width), finer.dtype, fill)
        for rows, columns in _chunks(height, width):
            part = finer[..., 2 * rows.start : 2 * rows.stop, 2 * columns.start : 2 * columns.stop]
            coarser[..., rows.start : rows.stop, columns.start : columns.stop] = shrink(part)
        finer = coarser


def _create(group: Any, level: int, shape: tuple[int, ...], dtype: Any, fill: int) -> Any:
    # Chunks of the fill value alone, glass and what has no nuclei, are left out by zarr.
    return group.create_array(
        str(level),
        shape=shape,
        chunks=(*[1] * (len(shape) - 2), *(min(CHUNK, side) for side in shape[-2:])),
        dtype=dtype,
        fill_value=fill,
        compressors=[{"name": "zstd", "configuration": {"level": 3, "checksum": False}}],
        dimension_names=("c", "y", "x")[-len(shape) :],
    )


def _mean(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Means of 2 x 2 pixels, (c, h, w); at an odd end of those that there are."""
    _, height, width = pixels.shape
    sums = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge").astype(np.uint16)
    sums = sums[:, ::2] + sums[:, 1::2]
    sums = sums[:, :, ::2] + sums[:, :, 1::2]
    return ((sums + 2) // 4).astype(np.uint8)


def _chunks(height: int, width: int) -> Iterator[tuple[range, range]]:
    for top in range(0, height, CHUNK):
        for left in range(0, width, CHUNK):
            yield range(top, min(top + CHUNK, height)), range(left, min(left + CHUNK, width))


def _sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Height and width of all levels."""
    sizes = [(height, width)]
    while max(sizes[-1]) > CHUNK:
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


def _image(name: str, grid: Grid) -> dict[str, Any]:
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    channels = [
        {"label": label, "color": colour, "active": True, "window": window}
        for label, colour in (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))
    ]
    channel = {"name": "c", "type": "channel"}
    return {
        "ome": {
            "version": _VERSION,
            "multiscales": [{"name": name, **_multiscale(grid, [channel])}],
            "omero": {"channels": channels, "rdefs": {"model": "color"}},
        }
    }


def _label(grid: Grid) -> dict[str, Any]:
    return {
        "ome": {
            "version": _VERSION,
            "multiscales": [{"name": NAME, **_multiscale(grid, [])}],
            "image-label": {"source": {"image": "../../"}},
        }
    }


def _multiscale(grid: Grid, before: list[dict[str, str]]) -> dict[str, Any]:
    """Axes and levels; axes `before` y and x are not scaled."""
    space = {"type": "space"}
    step, origin = 1.0, (0.0, 0.0)
    if grid.microns_per_pixel is not None:
        space["unit"] = "micrometer"
        step, origin = grid.microns_per_pixel, grid.origin
    datasets = []
    for level in range(len(_sizes(grid.height, grid.width))):
        factor = 2**level
        # The centre of a coarse pixel is that of the pixels it covers.
        middle = (factor - 1) / 2 * step
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [*(1.0 for _ in before), factor * step, factor * step]},
                    {"type": "translation", "translation": [*(0.0 for _ in before), *(at + middle for at in origin)]},
                ],
            }
        )
    return {"axes": [*before, *({"name": name, **space} for name in "yx")], "datasets": datasets}
