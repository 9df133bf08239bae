from __future__ import annotations

import numpy as np
import torch

from nuclora.training.losses import mask_bce, mask_dice, mask_iou

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 5, 7)).astype(np.float32) * 3
TARGETS = RNG.random((3, 5, 7)) < 0.4
VALID = RNG.random((5, 7)) < 0.8


def _tensors(valid=VALID):
    return torch.from_numpy(LOGITS), torch.from_numpy(TARGETS), torch.from_numpy(valid)


def test_bce_is_the_mean_of_the_written_out_formula_over_valid_pixels():
    probabilities = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    plain = -np.where(TARGETS, np.log(probabilities), np.log(1 - probabilities))
    expected = [plain[n][VALID].mean() for n in range(3)]
    np.testing.assert_allclose(mask_bce(*_tensors()), expected, rtol=1e-5)


def test_dice_is_the_written_out_formula_over_valid_pixels():
    probabilities = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    expected = []
    for n in range(3):
        p, t = probabilities[n][VALID], TARGETS[n][VALID]
        expected.append(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    np.testing.assert_allclose(mask_dice(*_tensors()), expected, rtol=1e-5)


def test_iou_counts_only_valid_pixels():
    expected = []
    for n in range(3):
        p, t = (LOGITS[n] > 0) & VALID, TARGETS[n] & VALID
        expected.append((p & t).sum() / (p | t).sum())
    np.testing.assert_allclose(mask_iou(*_tensors()), expected, rtol=1e-6)


def test_nothing_valid_gives_finite_losses():
    nothing = np.zeros_like(VALID)
    assert mask_bce(*_tensors(nothing)).tolist() == [0, 0, 0]
    assert mask_dice(*_tensors(nothing)).tolist() == [0, 0, 0]
    assert mask_iou(*_tensors(nothing)).tolist() == [1, 1, 1]
