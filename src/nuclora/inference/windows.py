"""Maps of an image of any size from a model that sees square windows of one size.

Windows overlap, and their maps are cross-faded there. The weights are products of a factor for the row and a factor for
the column, and each axis's factors sum to one over the windows: so no sum of weights has to be kept beside the maps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nuclora.data.targets import STRIDE

PredictWindow = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Span:
    """One window along one axis.

    Attributes:
        start: First pixel; even, so that the cells of all windows fall on one grid.
        weights: What its cells count, float32 (window / 2,); 0 beyond the end of the image.
    """

    start: int
    weights: NDArray[np.float32]


def predict_windows(
    image: NDArray[np.uint8], window: int, margin: int, predict: PredictWindow, progress: Progress | None = None
) -> NDArray[np.float32]:
    """Cut an image into windows, predict each, and blend their maps.

    An axis that is shorter than the window is continued by its mirror image, as often as it takes. Where one window
    alone sees a pixel, its maps are taken as they are.

    Args:
        image: RGB, (H, W, 3), at least one pixel.
        window: Side of a window in pixels, even.
        margin: Neighbouring windows overlap by at least so many pixels, and the weight of a window rises over so many
            from its edge; less than `window`.
        predict: Maps (C, window / 2, window / 2) of the pixels (window, window, 3).
        progress: Called with the number of windows done and of all.

    Returns:
        The maps, (C, ceil(H / 2), ceil(W / 2)).

    Raises:
        ValueError: An empty image, an odd window, or a margin out of range.

    Example:
        >>> image = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7, 1).repeat(3, axis=2)
        >>> predict_windows(image, 4, 2, lambda part: np.float32(part[::2, ::2, 0])[None])[0]
        array([[ 0.,  2.,  4.,  6.],
               [14., 16., 18., 20.],
               [28., 30., 32., 34.]], dtype=float32)
    """
    height, width = image.shape[:2]
    if not height or not width:
        raise ValueError(f"an image of {height}x{width} pixels has no maps")
    rows, columns = spans(height, window, margin), spans(width, window, margin)
    maps: NDArray[np.float32] | None = None
    done = 0
    for row in rows:
        for column in columns:
            seen = predict(_cut(image, row.start, column.start, window))
            if maps is None:
                maps = np.zeros((seen.shape[0], -(-height // STRIDE), -(-width // STRIDE)), dtype=np.float32)
            top, left = row.start // STRIDE, column.start // STRIDE
            part = maps[:, top : top + window // STRIDE, left : left + window // STRIDE]
            inside = np.s_[:, : part.shape[1], : part.shape[2]]
            part += seen[inside] * np.outer(row.weights, column.weights)[inside[1:]]
            done += 1
            if progress is not None:
                progress(done, len(rows) * len(columns))
    assert maps is not None
    return maps


def spans(length: int, window: int, margin: int) -> list[Span]:
    """Place windows evenly along one axis, with weights that sum to one in each cell.

    Args:
        length: Pixels of the axis.
        window: As in :func:`predict_windows`.
        margin: As in :func:`predict_windows`.

    Raises:
        ValueError: An odd window, or a margin out of range.
    """
    if window < STRIDE or window % STRIDE:
        raise ValueError(f"a window of {window} pixels: it must be even and at least {STRIDE}")
    largest_step = (window - margin) // STRIDE
    if margin < 0 or largest_step < 1:
        raise ValueError(f"a margin of {margin} pixels: it must be at least 0 and below the window's {window} by 2")
    cells, of_window = -(-length // STRIDE), window // STRIDE
    steps = -(-max(cells - of_window, 0) // largest_step)
    starts = [index * (cells - of_window) // steps for index in range(steps + 1)] if steps else [0]
    raw = np.zeros((len(starts), max(cells, of_window)), dtype=np.float64)
    for index, start in enumerate(starts):
        raw[index, start : start + of_window] = _ramps(of_window, margin / STRIDE, index > 0, index < steps)
    raw[:, cells:] = 0.0
    shares = raw / np.maximum(raw.sum(axis=0), np.finfo(np.float64).tiny)
    return [
        Span(start * STRIDE, shares[index, start : start + of_window].astype(np.float32))
        for index, start in enumerate(starts)
    ]


def _ramps(cells: int, margin: float, before: bool, after: bool) -> NDArray[np.float64]:
    """Weight of each cell of a window: a raised cosine over the margin, on the sides that have a neighbour."""
    weights = np.ones(cells)
    if margin:
        depth = np.arange(cells) + 0.5
        rise = np.sin(np.clip(depth / margin, 0, 1) * np.pi / 2) ** 2
        weights = np.minimum(rise if before else weights, rise[::-1] if after else weights)
    return weights


def _cut(image: NDArray[np.uint8], top: int, left: int, window: int) -> NDArray[np.uint8]:
    part = image[top : top + window, left : left + window]
    lacks = [(0, window - size) for size in part.shape[:2]]
    if any(after for _, after in lacks):
        part = np.pad(part, [*lacks, (0, 0)], mode="symmetric")
    return np.ascontiguousarray(part)
