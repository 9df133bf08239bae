"""What the dense decoder learns: maps of foreground, contact, distance and offsets, made from labels."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nuclora.data.ids import Labels, renumber_far
from nuclora.errors import NucloraError

MAPS = ("foreground", "contact", "distance", "offset_y", "offset_x")
OFFSETS = slice(3, 5)
STRIDE = 2

Floats = NDArray[np.float32]
Box = tuple[slice, slice]

# Pixels each way: 5 x 5 reaches over the gap of a few pixels that annotators leave between nuclei that touch.
_CONTACT_REACH = 2
# Diagonal neighbours hold a nucleus together, or a turned tile would shed pixels as nuclei of their own.
_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def dense_targets(labels: Labels, stride: int = STRIDE) -> Floats:
    """The maps that a perfect dense decoder would give.

    Distance and offsets take every connected part of an id for a nucleus of its own: the middle of parts that lie
    apart is a place in neither. Contact asks for different ids. The tile's edge counts as the edge of the nuclei
    that it cuts.

    Args:
        labels: Labels (H, W), 0 background, gaps allowed.
        stride: Pixels of the tile per pixel of the maps.

    Returns:
        :data:`MAPS`, float32 (5, ceil(H / stride), ceil(W / stride)):
        the share of nucleus pixels; 1 where two nuclei meet (:func:`contact_zone`), else 0; the mean distance to the
        nucleus's edge, divided by the nucleus's largest, 0 outside; the mean way down and right to the nucleus's
        centroid over the cell's nucleus pixels, in pixels of the tile, 0 outside.

    Raises:
        NucloraError: Labels that are not a plane of integers, or a stride below 1.
    """
    labels = _checked(labels, stride)
    height, width = labels.shape
    distance = np.zeros((height, width), dtype=np.float32)
    offsets = np.zeros((2, height, width), dtype=np.float32)
    for box, inside in _components(labels):
        # One pixel of background around, for the edge of a nucleus that fills its box.
        framed = np.zeros((inside.shape[0] + 2, inside.shape[1] + 2), dtype=bool)
        framed[1:-1, 1:-1] = inside
        depth = ndimage.distance_transform_edt(framed)[1:-1, 1:-1]
        distance[box][inside] = depth[inside] / depth.max()
        for offset, positions in zip(offsets, np.nonzero(inside), strict=True):
            offset[box][inside] = positions.mean() - positions

    foreground = _pool_mean((labels > 0).astype(np.float32), stride)
    # The background's zeros count in the sums, not in the number of pixels that they are divided by.
    nucleus_share = np.maximum(foreground, 1 / stride**2)
    return np.stack(
        [
            foreground,
            pool_any(contact_zone(labels), stride).astype(np.float32),
            _pool_mean(distance, stride),
            _pool_mean(offsets[0], stride) / nucleus_share,
            _pool_mean(offsets[1], stride) / nucleus_share,
        ]
    )


def pixel_weights(labels: Labels, contact_weight: float, small_weight: float, stride: int = STRIDE) -> Floats:
    """How much each pixel of the maps counts in their losses.

    Args:
        labels: Labels (H, W), 0 background, gaps allowed.
        contact_weight: Extra weight where two nuclei meet.
        small_weight: Extra weight of nuclei smaller than the tile's median, in the share of the cell that they cover.
        stride: Pixels of the tile per pixel of the maps.

    Returns:
        Weights, 1 and more, float32 (ceil(H / stride), ceil(W / stride)).

    Raises:
        NucloraError: As :func:`dense_targets`.
    """
    labels = _checked(labels, stride)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    present = areas > 0
    small = present & (areas < np.median(areas[present])) if present.any() else present
    weights = 1 + contact_weight * pool_any(contact_zone(labels), stride).astype(np.float32)
    return weights + np.float32(small_weight) * _pool_mean(small.astype(np.float32)[labels], stride)


def contact_zone(labels: Labels) -> NDArray[np.bool_]:
    """Where nuclei meet: pixels with two or more different ids in the 5 x 5 pixels around them.

    Args:
        labels: Labels (H, W), 0 background.

    Returns:
        Bool (H, W). The background between nuclei that nearly touch is part of it.
    """
    ids_only = np.where(labels > 0, labels, np.iinfo(labels.dtype).max)
    zone: NDArray[np.bool_] = _window(ids_only, np.minimum) < _window(labels, np.maximum)
    return zone


def _window(labels: Labels, better: np.ufunc) -> Labels:
    """The best value in the window around each pixel; ten times as fast as `ndimage`'s filters."""
    height, width = labels.shape
    padded = np.pad(labels, _CONTACT_REACH, mode="edge")
    steps = range(2 * _CONTACT_REACH + 1)
    rows: Labels = functools.reduce(better, [padded[step : step + height] for step in steps])
    best: Labels = functools.reduce(better, [rows[:, step : step + width] for step in steps])
    return best


def _components(labels: Labels) -> Iterator[tuple[Box, NDArray[np.bool_]]]:
    """Box and mask in it of each connected part of each id."""
    for identity, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        parts, count = ndimage.label(labels[box] == identity, _NEIGHBOURS)
        if count == 1:
            yield box, parts > 0
            continue
        for part, inner in enumerate(ndimage.find_objects(parts), start=1):
            yield _inner_box(box, inner), parts[inner] == part


def _inner_box(box: Box, inner: Box) -> Box:
    rows, columns = (
        slice(outer.start + part.start, outer.start + part.stop) for outer, part in zip(box, inner, strict=True)
    )
    return rows, columns


def _pool_mean(plane: Floats, stride: int) -> Floats:
    total: Floats = functools.reduce(np.add, _cell_pixels(plane, stride))
    return total * np.float32(1 / stride**2)


def pool_any(plane: NDArray[np.bool_], stride: int = STRIDE) -> NDArray[np.bool_]:
    """Which pixels of the maps hold any marked pixel of the tile.

    Args:
        plane: Bool (H, W).
        stride: Pixels of the tile per pixel of the maps.

    Returns:
        Bool (ceil(H / stride), ceil(W / stride)).
    """
    highest: NDArray[np.bool_] = functools.reduce(np.logical_or, _cell_pixels(plane, stride))
    return highest


def _cell_pixels(plane: NDArray[Any], stride: int) -> list[NDArray[Any]]:
    """The first pixel of each cell, the second, ...; what overhangs at the bottom and the right repeats the edge."""
    overhang = -plane.shape[0] % stride, -plane.shape[1] % stride
    if any(overhang):
        plane = np.pad(plane, ((0, overhang[0]), (0, overhang[1])), mode="edge")
    return [plane[row::stride, column::stride] for row in range(stride) for column in range(stride)]


def _checked(labels: Labels, stride: int) -> Labels:
    """Labels that tables by id can be made of."""
    if labels.ndim != 2 or not labels.size or not np.issubdtype(labels.dtype, np.integer):
        raise NucloraError(f"labels must be integers (H, W), not {labels.dtype} {labels.shape}")
    if labels.min() < 0:
        raise NucloraError("labels must not be negative")
    if stride < 1:
        raise NucloraError(f"the stride must be 1 or more, not {stride}")
    return renumber_far(labels)[0]
