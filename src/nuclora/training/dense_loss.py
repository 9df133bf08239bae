"""The loss of the prompt-free decoder's maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nuclora.models.dense_decoder import OFFSET_UNIT
from nuclora.recipe import DenseSettings

# Contact is rare: a missed contact pixel, which merges two nuclei, costs more than a false one.
_CONTACT_POSITIVES = 2.0
_OFFSET_BETA = 0.2


def dense_loss(raw: Tensor, maps: Tensor, weights: Tensor, settings: DenseSettings) -> Tensor:
    """Weighted sum of four losses, each averaged over the batch's known pixels.

    Foreground and contact: binary cross-entropy and soft Dice (Milletari et al. 2016); distance: mean absolute error;
    offset: smooth absolute error inside nuclei.

    Args:
        raw: (B, 5, h, w) of :class:`nuclora.models.dense_decoder.DenseDecoder`.
        maps: float32 (B, 5, h, w), the truth, as named in :data:`nuclora.data.targets.MAPS`.
        weights: float32 (B, h, w), 0 where no truth is known.
        settings: Weights of the four.

    Returns:
        float32 scalar; 0 where nothing is known.
    """
    foreground, contact, distance = maps[:, 0], maps[:, 1], maps[:, 2]
    total = settings.foreground * (
        _mean(F.binary_cross_entropy_with_logits(raw[:, 0], foreground, reduction="none"), weights)
        + _soft_dice(raw[:, 0], foreground, weights)
    )
    if settings.contact:
        positives = torch.tensor(_CONTACT_POSITIVES, device=raw.device)
        cross_entropy = F.binary_cross_entropy_with_logits(raw[:, 1], contact, reduction="none", pos_weight=positives)
        total = total + settings.contact * (
            _mean(cross_entropy, weights) + 0.5 * _soft_dice(raw[:, 1], contact, weights)
        )
    if settings.distance:
        total = total + settings.distance * _mean((raw[:, 2] - distance).abs(), weights)
    if settings.offset:
        errors = F.smooth_l1_loss(raw[:, 3:], maps[:, 3:] / OFFSET_UNIT, reduction="none", beta=_OFFSET_BETA).sum(1)
        total = total + settings.offset * _mean(errors, weights * foreground)
    return total


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1)


def _soft_dice(logits: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    known = (weights > 0).float()
    probabilities, truth = logits.sigmoid() * known, truth * known
    return 1 - (2 * (probabilities * truth).sum() + 1) / (probabilities.sum() + truth.sum() + 1)
