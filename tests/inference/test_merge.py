from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from nuclora.inference.merge import crop_masks, masks_to_labels


def _random_masks(count: int, frame: tuple[int, int], seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Soft blobs anywhere, over the edges too, some overlapping, with noisy rims, and scores with ties."""
    generator = np.random.default_rng(seed)
    y, x = np.ogrid[: frame[0], : frame[1]]
    logits = np.empty((count, *frame), dtype=np.float32)
    for index in range(count):
        centre = generator.uniform(-2, np.array(frame) + 2)
        radius = generator.uniform(2, 7)
        logits[index] = radius - np.hypot(y - centre[0], x - centre[1])
    logits += generator.normal(0, 0.8, logits.shape).astype(np.float32)
    return logits, generator.choice([0.5, 0.7, 0.9], count).astype(np.float32)


def _plain_reference(
    logits: NDArray[np.float32], scores: NDArray[np.float32], shape: tuple[int, int], overlaps: str, min_size: int
) -> NDArray[np.int32]:
    """All masks at full size at once, argmax of the score, largest component by brute force."""
    full = torch.nn.functional.interpolate(torch.from_numpy(logits)[None], shape, mode="bilinear", align_corners=False)[
        0
    ].numpy()
    value = full if overlaps == "logit" else np.broadcast_to(scores[:, None, None], full.shape)
    claims = np.where(full > 0, value, -1.0)
    winner = np.where(claims.max(axis=0) >= 0, claims.argmax(axis=0) + 1, 0)
    labels = np.zeros(shape, dtype=np.int32)
    count = 0
    for index in range(1, len(logits) + 1):
        components, found = ndimage.label(winner == index)
        if not found:
            continue
        sizes = [int((components == number).sum()) for number in range(1, found + 1)]
        if max(sizes) >= min_size:
            count += 1
            labels[components == sizes.index(max(sizes)) + 1] = count
    return labels


@pytest.mark.parametrize(
    ("frame", "shape"), [((32, 32), (128, 128)), ((32, 32), (90, 141)), ((32, 32), (32, 32)), ((48, 48), (37, 29))]
)
@pytest.mark.parametrize(("overlaps", "min_size"), [("score", 0), ("logit", 12)])
def test_equals_the_plain_reference(
    frame: tuple[int, int], shape: tuple[int, int], overlaps: Literal["score", "logit"], min_size: int
) -> None:
    logits, scores = _random_masks(40, frame, seed=min_size + shape[1])
    labels = masks_to_labels(crop_masks(logits, scores), shape, overlaps=overlaps, min_size=min_size)
    reference = _plain_reference(logits, scores, shape, overlaps, min_size)
    assert labels.dtype == np.int32
    assert labels.max() > 10
    # Interpolated in another order of operations: a logit within 1e-6 of the threshold may fall either way.
    assert (labels != reference).mean() < 1e-4


def test_ties_go_to_the_earlier_mask() -> None:
    logits = np.full((2, 8, 8), -1.0, dtype=np.float32)
    logits[0, 1:6, 1:6] = logits[1, 3:8, 3:8] = 1.0
    labels = masks_to_labels(crop_masks(logits, np.array([0.5, 0.5], np.float32)), (8, 8), overlaps="score", min_size=0)
    assert labels[4, 4] == 1
    assert labels[6, 6] == 2


def test_higher_score_wins_wherever_it_comes() -> None:
    logits = np.full((2, 8, 8), -1.0, dtype=np.float32)
    logits[0, 1:6, 1:6] = logits[1, 3:8, 3:8] = 1.0
    labels = masks_to_labels(crop_masks(logits, np.array([0.5, 0.6], np.float32)), (8, 8), overlaps="score", min_size=0)
    assert labels[4, 4] == 2


def test_only_the_largest_fragment_stays() -> None:
    logits = np.full((2, 12, 12), -1.0, dtype=np.float32)
    logits[0, 1:11, 4:6] = 1.0
    logits[1, 4:6, 1:12] = 1.0
    labels = masks_to_labels(
        crop_masks(logits, np.array([0.9, 0.2], np.float32)), (12, 12), overlaps="score", min_size=0
    )
    assert (labels == 1).sum() == 20
    # The bar under the first mask is cut in two; its right part is the longer one.
    assert np.argwhere(labels == 2)[:, 1].min() == 6
    assert (labels == 2).sum() == 12


def test_ids_are_compact_after_small_ones_went() -> None:
    logits = np.full((3, 16, 16), -1.0, dtype=np.float32)
    logits[0, 0:4, 0:4] = logits[2, 8:12, 8:12] = 1.0
    logits[1, 6, 1] = 1.0
    labels = masks_to_labels(crop_masks(logits, np.ones(3, np.float32)), (16, 16), overlaps="score", min_size=10)
    assert np.unique(labels).tolist() == [0, 1, 2]
    assert labels[9, 9] == 2


def test_no_masks_give_an_empty_map() -> None:
    nothing = crop_masks(np.full((3, 8, 8), -2.0, dtype=np.float32), np.ones(3, dtype=np.float32))
    assert nothing == []
    labels = masks_to_labels(nothing, (20, 30), overlaps="logit", min_size=0)
    assert labels.shape == (20, 30)
    assert not labels.any()
    assert crop_masks(np.zeros((0, 8, 8), np.float32), np.zeros(0, np.float32)) == []


def test_crops_are_small() -> None:
    logits = np.full((500, 64, 64), -1.0, dtype=np.float32)
    logits[:, 30:34, 30:34] = 1.0
    masks = crop_masks(logits, np.ones(500, dtype=np.float32))
    assert sum(mask.logits.nbytes for mask in masks) == 500 * 6 * 6 * 4
    assert all(mask.logits.base is None for mask in masks)
