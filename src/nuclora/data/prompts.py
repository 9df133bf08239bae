"""Geometry of prompts: boxes around and points inside the nuclei of a label map.

Coordinates are pixel indices: the centre of the first pixel is (0, 0), x runs right, y down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nuclora.data.ids import Labels, renumber_far

Slices = tuple[slice, slice]


def label_boxes(labels: Labels) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Tight boxes of all nuclei.

    Args:
        labels: Label map, (H, W), 0 background; ids may have gaps and several components.

    Returns:
        The ids, int32 (N,), ascending, and their boxes, float32 (N, 4), as x0, y0, x1, y1, where x1 and y1
        are the last column and row that belong to the nucleus.

    Example:
        >>> label_boxes(np.array([[0, 7, 7], [0, 0, 7]]))
        (array([7], dtype=int32), array([[1., 0., 2., 1.]], dtype=float32))
    """
    regions = list(label_regions(labels))
    ids = np.array([identity for identity, _ in regions], dtype=np.int32)
    boxes = [(columns.start, rows.start, columns.stop - 1, rows.stop - 1) for _, (rows, columns) in regions]
    return ids, np.array(boxes, dtype=np.float32).reshape(-1, 4)


def inner_points(labels: Labels, ids: Sequence[int] | NDArray[np.integer] | None = None) -> NDArray[np.float32]:
    """The innermost pixel of each nucleus: the one furthest from its border, first in reading order on ties.

    Unlike the centroid it is inside a nucleus of any shape. The edge of the image counts as border.

    Args:
        labels: Label map, (H, W), 0 background.
        ids: The nuclei, in the order wanted; all, ascending, by default.

    Returns:
        Points, float32 (N, 2), as x, y.

    Raises:
        ValueError: An id is not in the label map.
    """

    def innermost(mask: NDArray[np.bool_]) -> tuple[int, int]:
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        row, column = np.unravel_index(int(np.argmax(depth)), mask.shape)
        return int(row), int(column)

    return _points(labels, ids, innermost)


def random_inner_points(
    labels: Labels, ids: Sequence[int] | NDArray[np.integer], generator: np.random.Generator
) -> NDArray[np.float32]:
    """A pixel of each nucleus, all its pixels equally likely.

    Args:
        labels: Label map, (H, W), 0 background.
        ids: The nuclei, in the order wanted; the generator is drawn from once each, in this order.
        generator: Source of randomness.

    Returns:
        Points, float32 (N, 2), as x, y.

    Raises:
        ValueError: An id is not in the label map.
    """

    def any_pixel(mask: NDArray[np.bool_]) -> tuple[int, int]:
        pixels = np.flatnonzero(mask)
        row, column = divmod(int(pixels[generator.integers(len(pixels))]), mask.shape[1])
        return row, column

    return _points(labels, ids, any_pixel)


def to_input_frame(coordinates: NDArray[np.floating], shape: tuple[int, int], size: int) -> NDArray[np.float32]:
    """Map points or boxes from an image to the square input that the image is stretched to.

    Pixel centres map onto pixel centres as the bilinear resizing does (`align_corners=False`):
    ``x' = (x + 0.5) * size / width - 0.5``. SAM's prompt encoder adds the half pixel again itself.

    Args:
        coordinates: Points (N, 2) as x, y or boxes (N, 4) as x0, y0, x1, y1, in pixels of the image.
        shape: Height and width of the image.
        size: Side of the square input.

    Returns:
        The same shape, float32, in pixels of the input.
    """
    height, width = shape
    scale = np.tile([size / width, size / height], coordinates.shape[-1] // 2)
    mapped: NDArray[np.float32] = ((coordinates + 0.5) * scale - 0.5).astype(np.float32)
    return mapped


def label_regions(labels: Labels) -> Iterator[tuple[int, Slices]]:
    """Each id with the smallest rows and columns that hold all of it, ids ascending.

    Args:
        labels: Label map, (H, W), 0 background; ids may have gaps and be as large as int32 goes.
    """
    labels, ids = renumber_far(labels)
    # find_objects takes int32 and int64 only; wider ids than int32 are not label maps of ours.
    for number, region in enumerate(ndimage.find_objects(labels.astype(np.int32, copy=False)), start=1):
        if region is not None:
            yield number if ids is None else int(ids[number - 1]), region


def _points(
    labels: Labels,
    ids: Sequence[int] | NDArray[np.integer] | None,
    choose: Callable[[NDArray[np.bool_]], tuple[int, int]],
) -> NDArray[np.float32]:
    regions = dict(label_regions(labels))
    points = []
    for identity in regions if ids is None else (int(identity) for identity in ids):
        if identity not in regions:
            raise ValueError(f"no nucleus {identity} in the label map")
        rows, columns = regions[identity]
        row, column = choose(labels[rows, columns] == identity)
        points.append((columns.start + column, rows.start + row))
    return np.array(points, dtype=np.float32).reshape(-1, 2)
