from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nuclora.inference.everything import grid_points, plausible_masks, stability_score, suppress_overlaps
from nuclora.recipe import EvaluateSettings, GridSettings


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


def test_stability_is_the_iou_of_two_thresholds() -> None:
    logits = torch.full((3, 1, 10, 10), -5.0)
    logits[0, 0, 2:6, 2:6] = 5.0
    logits[1, 0, 2:6, 2:6] = 5.0  # a rim of half its size lies between the thresholds
    logits[1, 0, 6:8, 2:6] = 0.5
    assert stability_score(logits, 1.0).flatten().tolist() == pytest.approx([1, 16 / 24, 0])


def test_a_mask_covers_its_point_and_is_no_larger_than_a_nucleus() -> None:
    settings = GridSettings(largest_share=0.25)
    logits = torch.full((3, 1, 10, 10), -5.0)
    logits[:2, 0, 2:6, 4:8] = 5.0
    logits[2, 0, 0:6, 0:6] = 5.0  # over a quarter of the tile
    # The image is twice as wide and half as high as the masks.
    points = np.array([[11.5, 1.5], [5.5, 2.5], [3.5, 1.0]], np.float32)
    assert plausible_masks(logits, points, (5, 20), settings).flatten().tolist() == [True, False, False]


@pytest.mark.parametrize("iou_trained", [True, False])
def test_an_untrained_iou_head_has_no_say(make_fake, iou_trained) -> None:
    predictor = make_fake(64, iou_trained=iou_trained)
    settings = EvaluateSettings.model_validate({"grid": {"points_per_side": 2, "iou_threshold": 0.95}})
    image = np.zeros((64, 64, 3), np.uint8)
    assert predictor.segment(image, "automatic", settings).max() == (0 if iou_trained else 4)
