"""From outlines and masks of single nuclei to a label map.

Coordinates are those of Aperio, QuPath and COCO alike: x right, y down, the first pixel covers 0 to 1. **A pixel
belongs to a nucleus if its centre (x + .5, y + .5) lies inside the outline.** (MoNuSeg's own MATLAB script draws half a
pixel further up and left, because MATLAB counts pixels from 1; Python scripts that do not shift by .5 draw half a pixel
the other way.) A centre on the outline itself counts on the left and at the top of a nucleus only, so that neighbours
never share it: outlines of scikit-image's `find_contours` run through centres all along.

A pixel that several nuclei claim goes to **the smallest of them**, or to the earlier one of equals. A small nucleus
over a large one would be buried if the earlier won, as in MoNuSeg's script, or the later: annotators draw in any order.
What touching outlines share is a pixel or two wide, and the rule hardly matters there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nuclora.data.tiles import Truth

# polygon() counts centres on any edge as inside. By x and y, far below what files round coordinates to, and unequal:
# edges at 45 degrees would be shifted along themselves.
_TIE = np.array((1e-6, 0.6e-6))

Pixels: TypeAlias = NDArray[np.int64]
"""Pixels of one nucleus, as indices into the flattened tile."""


def fill(rings: Sequence[ArrayLike], shape: tuple[int, int]) -> Pixels:
    """Find the pixels whose centres lie in a polygon.

    Args:
        rings: Points (N, 2) of x and y: the outline, then its holes. Closed or not; may leave the tile. An outline of
            fewer than three points has no pixels.
        shape: Height and width of the tile.

    Returns:
        The pixels, in ascending order.

    Raises:
        ValueError: Not points of two finite numbers.

    Example:
        >>> fill([[(1, 0), (3, 0), (3, 1), (1, 1)]], (2, 4)).tolist()
        [1, 2]
    """
    outer, *holes = [_inside(ring, shape) for ring in rings]
    return np.setdiff1d(outer, union(holes)) if holes else outer


def _inside(ring: ArrayLike, shape: tuple[int, int]) -> Pixels:
    from skimage.draw import polygon

    try:
        points = np.asarray(ring, dtype=np.float64)
    except OverflowError as error:
        raise ValueError("a number that is too large") from error
    if points.ndim != 2 or points.shape[1] < 2 or not np.isfinite(points).all():
        raise ValueError("points that are not two finite numbers each")
    # QuPath may write a third coordinate, the plane.
    shifted = points[:, :2] - 0.5 - _TIE
    rows, columns = polygon(shifted[:, 1], shifted[:, 0], shape) if len(points) > 2 else ([], [])
    return np.unique(np.asarray(rows, np.int64) * shape[1] + np.asarray(columns, np.int64))


def union(parts: Iterable[Pixels]) -> Pixels:
    """Pixels that are in any of the parts, in ascending order."""
    return np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))


def paint(nuclei: Sequence[Pixels], shape: tuple[int, int]) -> NDArray[np.int32]:
    """Make a label map of nuclei that may overlap; see above for who wins.

    Args:
        nuclei: Pixels of each.
        shape: Height and width of the tile.

    Returns:
        Labels (H, W): nucleus i has the id i + 1. A nucleus without pixels leaves a gap.
    """
    labels = np.zeros(shape[0] * shape[1], dtype=np.int32)
    for index in sorted(range(len(nuclei)), key=lambda index: (-len(nuclei[index]), -index)):
        labels[nuclei[index]] = index + 1
    return labels.reshape(shape)


def draw(nuclei: Sequence[Pixels], shape: tuple[int, int], unknown: Iterable[Pixels] = ()) -> Truth:
    """Make the truth of a tile.

    Args:
        nuclei: Pixels of each nucleus; ids count them from 1.
        shape: Height and width of the tile.
        unknown: Pixels of what is ignored.
    """
    ignored = union(unknown)
    mask = None
    if ignored.size:
        mask = np.zeros(shape, dtype=np.bool_)
        mask.flat[ignored] = True
    return Truth(paint(nuclei, shape), mask, drawn=len(nuclei))
