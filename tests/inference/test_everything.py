from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nuclora.inference.everything import good_masks, grid_points, suppress_overlaps
from nuclora.recipe import GridSettings


def _box_iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _brute_force(boxes: NDArray[np.float64], scores: NDArray[np.float64], threshold: float) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda index: (-scores[index], index)):
        if all(_box_iou(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(index)
    return sorted(kept)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_suppression_equals_brute_force(threshold: float) -> None:
    generator = np.random.default_rng(3)
    corners = generator.integers(0, 40, (150, 2))
    boxes = np.concatenate([corners, corners + generator.integers(1, 20, (150, 2))], axis=1).astype(np.float64)
    scores = generator.choice([0.6, 0.7, 0.8, 0.9], 150)
    kept = suppress_overlaps(boxes, scores, threshold)
    assert kept == _brute_force(boxes, scores, threshold)
    assert 1 < len(kept) < 150


def test_suppressing_nothing() -> None:
    assert suppress_overlaps(np.zeros((0, 4)), np.zeros(0), 0.5) == []


def test_grid_points_divide_any_image_evenly() -> None:
    points = grid_points((10, 40), 2)
    assert points.tolist() == [[9.5, 2.0], [29.5, 2.0], [9.5, 7.0], [29.5, 7.0]]


def test_filters_one_by_one() -> None:
    settings = GridSettings(
        iou_threshold=0.7, stability_threshold=0.8, stability_offset=1.0, largest_share=0.25
    )
    logits = torch.full((5, 10, 10), -5.0)
    logits[0, 2:6, 2:6] = 5.0  # good
    logits[1, 2:6, 2:6] = 5.0  # its predicted IoU is too low
    logits[2, 2:6, 2:6] = 5.0  # a rim of half its size lies between the thresholds
    logits[2, 6:8, 2:6] = 0.5
    logits[3, 0:6, 0:6] = 5.0  # over a quarter of the tile
    iou = torch.tensor([0.9, 0.6, 0.9, 0.9, 0.9])  # the fifth is empty
    assert good_masks(logits, iou, settings).tolist() == [True, False, False, False, False]
    lenient = settings.model_copy(update={"stability_threshold": 0.6})
    assert good_masks(logits, iou, lenient).tolist() == [True, False, True, False, False]
