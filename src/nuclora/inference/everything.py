"""SAM's automatic mask generator: a grid of point prompts, filtered by quality, stability and overlap.

After Kirillov et al., "Segment Anything", 2023, section 5; without the crops and the small-region clean-up, which
:func:`nuclora.inference.merge.masks_to_labels` does in its own way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from nuclora.inference.merge import MASK_THRESHOLD, Mask, crop_masks, masks_to_labels
from nuclora.recipe import EvaluateSettings, GridSettings

if TYPE_CHECKING:
    from nuclora.inference.predictor import EncodedImage, Predictor


def segment_everything(predictor: Predictor, encoded: EncodedImage, settings: EvaluateSettings) -> NDArray[np.int32]:
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
    decoded = predictor.decode(encoded, points=points, multimask=predictor.multimask_points)
    for first, (logits, iou) in zip(range(0, len(points), predictor.chunk), decoded, strict=True):
        stability = stability_score(logits, grid.stability_offset)
        # An IoU head that training left behind says nothing of the masks that the rest of the decoder now draws.
        sure = iou >= grid.iou_threshold if predictor.iou_trained else torch.ones_like(iou, dtype=torch.bool)
        prompts = points[first : first + predictor.chunk]
        kept = sure & (stability >= grid.stability_threshold) & plausible_masks(logits, prompts, encoded.shape, grid)
        quality = iou if predictor.iou_trained else stability
        masks += crop_masks(logits[kept].numpy(force=True), quality[kept].numpy(force=True))
    boxes = np.array([_box(mask) for mask in masks], dtype=np.float64).reshape(-1, 4)
    scores = np.array([mask.score for mask in masks], dtype=np.float64)
    chosen = suppress_overlaps(boxes, scores, grid.overlap_threshold)
    # A mask of a whole cluster is sure of its inner pixels too; only its score tells it from the nuclei in it.
    return masks_to_labels(
        [masks[index] for index in chosen], encoded.shape, overlaps="score", min_size=settings.min_size
    )


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


def stability_score(logits: torch.Tensor, offset: float) -> torch.Tensor:
    """IoU of each mask at a raised and at a lowered threshold.

    It is taken at the decoder's low resolution, where the reference takes it after upsampling.

    Args:
        logits: Low-resolution logits, (N, M, h, w).
        offset: How far the threshold is moved either way.

    Returns:
        (N, M), in 0..1; 0 for a mask that is empty at both thresholds.
    """
    inner = (logits > MASK_THRESHOLD + offset).sum(dim=(2, 3))
    outer = (logits > MASK_THRESHOLD - offset).sum(dim=(2, 3))
    return inner / outer.clamp(min=1)


def plausible_masks(
    logits: torch.Tensor, points: NDArray[np.float32], shape: tuple[int, int], settings: GridSettings
) -> torch.Tensor:
    """Which masks cover the point that asked for them, and are small enough for a nucleus.

    Args:
        logits: Low-resolution logits over the whole image, (N, M, h, w).
        points: The prompts, (N, 2), x, y in pixels of the image.
        shape: Height and width of the image.
        settings: `largest_share` is read.

    Returns:
        Boolean, (N, M).
    """
    height, width = logits.shape[2:]
    rows = ((points[:, 1] + 0.5) * height / shape[0]).astype(np.int64)
    columns = ((points[:, 0] + 0.5) * width / shape[1]).astype(np.int64)
    masks = logits > MASK_THRESHOLD
    covers = masks[np.arange(len(points)), :, rows, columns]
    return covers & (masks.sum(dim=(2, 3)) <= settings.largest_share * height * width)


def suppress_overlaps(boxes: NDArray[np.float64], scores: NDArray[np.float64], threshold: float) -> list[int]:
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
