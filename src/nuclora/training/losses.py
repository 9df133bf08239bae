"""Losses of predicted masks, one value a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mask_bce(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy of each mask, averaged over its valid pixels.

    Args:
        logits: float (N, H, W).
        targets: bool (N, H, W).
        valid: bool (H, W) or (N, H, W); pixels left out where False.

    Returns:
        float32 (N,); 0 where no pixel is valid.
    """
    values = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return (values * valid).sum((1, 2)) / valid.sum((-2, -1)).clamp(min=1)


def mask_dice(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Soft Dice loss of each mask over its valid pixels, 1 - 2 |P T| / (|P| + |T|) (Milletari et al. 2016).

    Args:
        logits: float (N, H, W).
        targets: bool (N, H, W).
        valid: bool (H, W) or (N, H, W); pixels left out where False.

    Returns:
        float32 (N,), with one pixel of smoothing so that an empty mask has a gradient.
    """
    probabilities = torch.sigmoid(logits.float()) * valid
    known = targets * valid
    overlap = (probabilities * known).sum((1, 2))
    return 1 - (2 * overlap + 1) / (probabilities.sum((1, 2)) + known.sum((1, 2)) + 1)


def mask_iou(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """IoU of each thresholded mask with its target over the valid pixels; what SAM's IoU head learns to predict.

    Args:
        logits: float (N, H, W); positive inside.
        targets: bool (N, H, W).
        valid: bool (H, W) or (N, H, W); pixels left out where False.

    Returns:
        float32 (N,), without gradient; 1 where both are empty.
    """
    masks, known = (logits.detach() > 0) & valid, targets & valid
    overlap = (masks & known).sum((1, 2))
    union = (masks | known).sum((1, 2))
    return torch.where(union > 0, overlap / union.clamp(min=1), 1.0)
