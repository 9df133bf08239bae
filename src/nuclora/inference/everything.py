"""SAM's automatic mask generator: a grid of point prompts, filtered by quality, stability and overlap.

After Kirillov et al., "Segment Anything", 2023, section 5; without the crops and the small-region clean-up, which
:func:`nuclora.inference.merge.masks_to_labels` does in its own way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nuclora.inference.merge import MASK_THRESHOLD, Mask, crop_masks, masks_to_labels
from nuclora.recipe import EvaluateSettings, GridSettings

if TYPE_CHECKING:
    import torch

    from nuclora.inference.predictor import EncodedImage, Predictor


def segment_everything(
    predictor: Predictor, encoded: EncodedImage, settings: EvaluateSettings
) -> NDArray[np.int32]:
    """Segment an image without any prompt from outside.

    Args:
        predictor: The model.
        encoded: The image's encoding.
        settings: Density of the grid, filters and the smallest nucleus.

    Returns:
        Labels, int32 (H, W), 1..n, 0 background.
    """
    grid = settings.grid
    points = grid_points(encoded.shape, grid.points_per_side)
    masks: list[Mask] = []
    for logits, iou in predictor.decode(encoded, points=points, multimask=predictor.multimask_points):
        kept = good_masks(logits.flatten(0, 1), iou.flatten(), grid)
        masks += crop_masks(logits.flatten(0, 1)[kept].numpy(force=True), iou.flatten()[kept].numpy(force=True))
    boxes = np.array([_box(mask) for mask in masks], dtype=np.float64).reshape(-1, 4)
    scores = np.array([mask.score for mask in masks], dtype=np.float64)
    chosen = suppress_overlaps(boxes, scores, grid.overlap_threshold)
    return masks_to_labels([masks[index] for index in chosen], encoded.shape, min_size=settings.min_size)


def grid_points(shape: tuple[int, int], points_per_side: int) -> NDArray[np.float32]:
    """Centres of a regular division of the image.

    Args:
        shape: Height and width of the image.
        points_per_side: Points along each side.

    Returns:
        Points, float32 (points_per_side ** 2, 2), as x, y in pixels, row by row.
    """
    height, width = shape
    steps = (np.arange(points_per_side) + 0.5) / points_per_side
    x, y = np.meshgrid(steps * width - 0.5, steps * height - 0.5)
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)


def good_masks(logits: torch.Tensor, iou: torch.Tensor, settings: GridSettings) -> torch.Tensor:
    """Which masks are sure of themselves, stable, and small enough for a nucleus.

    The stability score is the IoU of the mask at a raised and at a lowered threshold. Both are taken at the decoder's
    low resolution, where the reference takes them after upsampling.

    Args:
        logits: Low-resolution logits, (N, h, w).
        iou: Predicted IoU, (N,).
        settings: The thresholds.

    Returns:
        Boolean, (N,).
    """

    def area(threshold: float) -> torch.Tensor:
        return (logits > threshold).sum(dim=(1, 2))

    inner = area(MASK_THRESHOLD + settings.stability_offset)
    outer = area(MASK_THRESHOLD - settings.stability_offset)
    share = area(MASK_THRESHOLD) / (logits.shape[1] * logits.shape[2])
    stable = inner >= settings.stability_threshold * outer.clamp(min=1)
    return (iou >= settings.iou_threshold) & stable & (share > 0) & (share <= settings.largest_share)


def suppress_overlaps(
    boxes: NDArray[np.float64], scores: NDArray[np.float64], threshold: float
) -> list[int]:
    """Greedy non-maximum suppression by the IoU of boxes.

    Args:
        boxes: (N, 4) as x0, y0, x1, y1, the far edges exclusive.
        scores: (N,); the better of two overlapping boxes stays, the earlier one on ties.
        threshold: Largest IoU that two boxes may have.

    Returns:
        Indices of the boxes that stay, ascending.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    waiting = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(int(best))
        near = np.maximum(boxes[waiting, :2], boxes[best, :2])
        far = np.minimum(boxes[waiting, 2:], boxes[best, 2:])
        shared = np.clip(far - near, 0, None).prod(axis=1)
        waiting = waiting[shared <= threshold * (areas[waiting] + areas[best] - shared)]
    return sorted(kept)


def _box(mask: Mask) -> tuple[int, int, int, int]:
    """Box of a mask in cells of its frame: x0, y0, x1, y1, the far edges exclusive."""
    rows, columns = np.nonzero(mask.logits > MASK_THRESHOLD)
    return (
        mask.column + int(columns.min()),
        mask.row + int(rows.min()),
        mask.column + int(columns.max()) + 1,
        mask.row + int(rows.max()) + 1,
    )
