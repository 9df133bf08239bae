"""Masks to one label map: upsampled one at a time, overlaps resolved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Axis = tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]

MASK_THRESHOLD = 0.0


@dataclass(frozen=True)
class Mask:
    """One predicted mask, kept as the part of its logits that matters.

    Attributes:
        logits: The logits above the threshold and one cell around them, float32 (h, w).
        row: First row of the part in the frame.
        column: First column of the part in the frame.
        frame: Height and width of the low-resolution frame; it covers the whole image.
        score: Predicted IoU.
    """

    logits: NDArray[np.float32]
    row: int
    column: int
    frame: tuple[int, int]
    score: float


def crop_masks(logits: NDArray[np.float32], scores: NDArray[np.float32]) -> list[Mask]:
    """Keep of each mask what its upsampling needs.

    Args:
        logits: Low-resolution logits, (N, h, w).
        scores: Predicted IoU, (N,).

    Returns:
        The masks in their order; those with no logit above the threshold are left out.
    """
    frame = (int(logits.shape[1]), int(logits.shape[2]))
    above = logits > MASK_THRESHOLD
    rows: NDArray[np.bool_] = np.any(above, axis=2)
    columns: NDArray[np.bool_] = np.any(above, axis=1)
    masks = []
    for index in np.flatnonzero(np.any(rows, axis=1)):
        top, bottom = _extent(rows[index])
        left, right = _extent(columns[index])
        # One cell more on each side: interpolation reaches over to it.
        top, left = max(top - 1, 0), max(left - 1, 0)
        part = logits[index, top : bottom + 2, left : right + 2].copy()
        masks.append(Mask(part, top, left, frame, float(scores[index])))
    return masks


def masks_to_labels(
    masks: Sequence[Mask], shape: tuple[int, int], *, overlaps: Literal["score", "logit"], min_size: int
) -> NDArray[np.int32]:
    """One label map of all masks.

    Each mask is upsampled bilinearly to the image and thresholded. A pixel that several masks claim goes to the best
    of them, on ties to the earlier one. Of a label that others cut into fragments the largest one stays (4-connected,
    the first in reading order on ties), the rest becomes background.

    Args:
        masks: The masks, from :func:`crop_masks`.
        shape: Height and width of the image.
        overlaps: What makes a mask the best at a pixel: `score`, its predicted IoU, where masks compete for the same
            nuclei; `logit`, its own logit there, where each mask is known to mean another nucleus. With truth boxes on
            11 NuInsSeg tiles, MobileSAM as it came, `logit` gains .02 AJI and .02 PQ over `score`.
        min_size: Labels of fewer pixels are left out.

    Returns:
        Labels, int32 (H, W), 1..n in the order of the masks, 0 background.
    """
    labels = np.zeros(shape, dtype=np.int32)
    best = np.full(shape, -np.inf, dtype=np.float32)
    for index, mask in enumerate(masks, start=1):
        (top, left), logits = _upsample(mask, shape)
        region = np.s_[top : top + logits.shape[0], left : left + logits.shape[1]]
        value = logits if overlaps == "logit" else np.full_like(logits, mask.score)
        wins = (logits > MASK_THRESHOLD) & (value > best[region])
        best[region][wins] = value[wins]
        labels[region][wins] = index
    return _relabel(largest_components(labels), min_size)


def _extent(present: NDArray[np.bool_]) -> tuple[int, int]:
    found = np.flatnonzero(present)
    return int(found[0]), int(found[-1])


def _upsample(mask: Mask, shape: tuple[int, int]) -> tuple[tuple[int, int], NDArray[np.float32]]:
    """The mask's part of the image: its first row and column, and logits as `align_corners=False` makes them."""
    top, (low, high, weight) = _axis(mask.row, mask.logits.shape[0], mask.frame[0], shape[0])
    rows = mask.logits[low] * (1 - weight[:, None]) + mask.logits[high] * weight[:, None]
    left, (low, high, weight) = _axis(mask.column, mask.logits.shape[1], mask.frame[1], shape[1])
    logits = rows[:, low] * (1 - weight) + rows[:, high] * weight
    return (top, left), logits.astype(np.float32, copy=False)


def _axis(start: int, length: int, cells: int, pixels: int) -> tuple[int, Axis]:
    """First pixel under the cells start..start + length - 1, and both neighbours and weight of each pixel there."""
    scale = cells / pixels
    last = start + length - 1
    # At the edge of the frame the outermost cell goes on to the edge of the image.
    first_pixel = 0 if start == 0 else math.ceil((start + 0.5) / scale - 0.5)
    last_pixel = pixels - 1 if last == cells - 1 else math.floor((last + 0.5) / scale - 0.5)
    position = (np.arange(first_pixel, last_pixel + 1) + 0.5) * scale - 0.5
    position = np.clip(position, 0, cells - 1)
    low = np.clip(np.floor(position).astype(np.intp), start, last)
    high = np.minimum(low + 1, last)
    return first_pixel, (low - start, high - start, (position - low).astype(np.float32))


def largest_components(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Each label's largest part whose pixels touch by their sides; of equal ones the first in reading order.

    Args:
        labels: int32 (H, W), 0 background.
    """
    from skimage.measure import label

    components, count = label(labels, background=0, connectivity=1, return_num=True)
    sizes = np.bincount(components.ravel(), minlength=count + 1)
    label_of = np.zeros(count + 1, dtype=np.int32)
    label_of[components] = labels
    best = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.intp)
    # Components are numbered in reading order; a strictly larger one is needed to replace an earlier one.
    for component in range(1, count + 1):
        current = best[label_of[component]]
        if current == 0 or sizes[component] > sizes[current]:
            best[label_of[component]] = component
    return np.where(components == best[labels], labels, 0).astype(np.int32)


def _relabel(labels: NDArray[np.int32], min_size: int) -> NDArray[np.int32]:
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = (sizes > 0) & (sizes >= min_size)
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[labels]
