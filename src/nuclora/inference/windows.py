"""Maps of an image of any size from a model that sees square windows of one size.

Windows stand on one lattice that begins at the image's first pixel, and neighbours overlap by a margin, in which their
maps are cross-faded. Where a window stands and what it weighs does not depend on the image's size. So the maps of a
part of an image can be computed from the windows that touch it, and are those of the whole, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nuclora.data.targets import STRIDE

PredictWindow = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Progress = Callable[[int, int], None]
Known = dict[tuple[int, int], NDArray[np.float32]]
"""Maps of windows that were predicted, by their first row and column in the image."""


@dataclass(frozen=True)
class Span:
    """One window along one axis.

    Attributes:
        start: First pixel; even, so that the cells of all windows fall on one grid.
        weights: What its cells count, float32 (window / 2,).
    """

    start: int
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class Part:
    """The part of an image whose maps are wanted, where only some of the image's pixels are at hand.

    Attributes:
        shape: Height and width of the whole image in pixels.
        origin: Row and column in it of the first pixel at hand.
        rows: The cells wanted, of those of the whole image.
        columns: The cells wanted, of those of the whole image.
    """

    shape: tuple[int, int]
    origin: tuple[int, int]
    rows: range
    columns: range


def predict_windows(
    image: NDArray[np.uint8],
    window: int,
    margin: int,
    predict: PredictWindow,
    progress: Progress | None = None,
    *,
    part: Part | None = None,
    known: Known | None = None,
) -> NDArray[np.float32]:
    """Cut an image into windows, predict each, and blend their maps.

    What a window sees beyond the image's end is the mirror image of what it sees before, as often as it takes. Where
    one window alone sees a pixel, its maps are taken as they are.

    Args:
        image: RGB, (H, W, 3), at least one pixel.
        window: Side of a window in pixels, even.
        margin: Neighbouring windows overlap by so many pixels; even, at most half of `window`.
        predict: Maps (C, window / 2, window / 2) of the pixels (window, window, 3).
        progress: Called with the number of windows done and of all.
        part: Compute these cells only; `image` then holds the pixels of :func:`seen_pixels`.
        known: Windows that need not be predicted again; those that are predicted are added.

    Returns:
        The maps, (C, ceil(H / 2), ceil(W / 2)), or those of the part.

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
    whole = Part((height, width), (0, 0), range(-(-height // STRIDE)), range(-(-width // STRIDE)))
    part = part or whole
    rows = spans(part.shape[0], window, margin, part.rows)
    columns = spans(part.shape[1], window, margin, part.columns)
    maps: NDArray[np.float32] | None = None
    done = 0
    for row in rows:
        for column in columns:
            place = row.start, column.start
            seen = known.get(place) if known is not None else None
            if seen is None:
                seen = predict(_cut(image, part, place, window))
                # Kept only where somebody asks: those of a large image are more than memory holds.
                if known is not None:
                    known[place] = seen
            if maps is None:
                maps = np.zeros((seen.shape[0], len(part.rows), len(part.columns)), dtype=np.float32)
            _blend(maps, seen, (row, column), part)
            done += 1
            if progress is not None:
                progress(done, len(rows) * len(columns))
    assert maps is not None
    return maps


def spans(length: int, window: int, margin: int, cells: range | None = None) -> list[Span]:
    """Place windows along one axis, with weights that sum to one in each cell.

    Args:
        length: Pixels of the axis.
        window: As in :func:`predict_windows`.
        margin: As in :func:`predict_windows`.
        cells: Give only the windows that touch these.

    Raises:
        ValueError: An odd window, or a margin out of range.
    """
    if window < STRIDE or window % STRIDE:
        raise ValueError(f"a window of {window} pixels: it must be even and at least {STRIDE}")
    if margin % STRIDE or not 0 <= margin <= window // 2:
        raise ValueError(f"a margin of {margin} pixels: it must be even and at most half of the window's {window}")
    step = window - margin
    last = -(-max(length - window, 0) // step)
    cells = cells if cells is not None else range(-(-length // STRIDE))
    # The first whose end is beyond the first cell, and the last that begins before the last cell's end.
    first = max(0, -(-(cells.start * STRIDE - window + STRIDE) // step))
    end = min(last, (cells.stop - 1) * STRIDE // step)
    return [
        Span(index * step, _weights(window // STRIDE, margin // STRIDE, index > 0, index < last))
        for index in range(first, end + 1)
    ]


def seen_pixels(length: int, window: int, margin: int, cells: range) -> range:
    """The pixels of an axis that the windows see which touch some cells.

    Args:
        length: Pixels of the axis.
        window: As in :func:`predict_windows`.
        margin: As in :func:`predict_windows`.
        cells: Some of its cells.
    """
    touching = spans(length, window, margin, cells)
    return range(touching[0].start, min(touching[-1].start + window, length))


def _weights(cells: int, margin: int, before: bool, after: bool) -> NDArray[np.float32]:
    """Weight of each cell of a window: a raised cosine over the margin, on the sides that have a neighbour."""
    weights = np.ones(cells)
    rise = np.sin((np.arange(margin) + 0.5) / max(margin, 1) * np.pi / 2) ** 2
    if before:
        weights[:margin] = rise
    if after:
        weights[cells - margin :] = rise[::-1]
    return weights.astype(np.float32)


def _blend(maps: NDArray[np.float32], seen: NDArray[np.float32], place: tuple[Span, Span], part: Part) -> None:
    """Add a window's weighted maps to those of the part, where they meet."""
    here, there = [], []
    for span, cells in zip(place, (part.rows, part.columns), strict=True):
        start = span.start // STRIDE
        first, stop = max(start, cells.start), min(start + len(span.weights), cells.stop)
        here.append(slice(first - cells.start, stop - cells.start))
        there.append(slice(first - start, stop - start))
    weights = np.outer(place[0].weights[there[0]], place[1].weights[there[1]])
    maps[:, here[0], here[1]] += seen[:, there[0], there[1]] * weights


def _cut(image: NDArray[np.uint8], part: Part, place: tuple[int, int], window: int) -> NDArray[np.uint8]:
    top, left = (start - origin for start, origin in zip(place, part.origin, strict=True))
    seen = image[top : top + window, left : left + window]
    lacks = [(0, window - size) for size in seen.shape[:2]]
    if any(after for _, after in lacks):
        seen = np.pad(seen, [*lacks, (0, 0)], mode="symmetric")
    return np.ascontiguousarray(seen)
