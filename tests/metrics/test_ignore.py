from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from nuclora.metrics import OverlapTable, per_nucleus, score

Pair = tuple[NDArray[np.int32], NDArray[np.int32]]
RandomPair = Callable[[int], Pair]


def without_ignored(truth: NDArray[np.int32], prediction: NDArray[np.int32], ignore: NDArray[np.bool_]) -> Pair:
    """The documented rules, one instance and one full mask at a time."""
    ignore = ignore.copy()
    gone = [truth == i for i in np.unique(truth)[1:] if (ignore & (truth == i)).sum() * 2 > (truth == i).sum()]
    for mask in gone:
        ignore |= mask
    kept_truth = np.where(ignore, 0, truth)
    kept_prediction = np.where(ignore, 0, prediction)
    for label in np.unique(prediction)[1:]:
        whole, left = prediction == label, kept_prediction == label
        if (ignore & whole).sum() * 2 <= whole.sum():
            continue
        masks = [kept_truth == i for i in np.unique(kept_truth)[1:]]
        if not any((left & mask).sum() / (left | mask).sum() > 0.5 for mask in masks):
            kept_prediction[left] = 0
    return kept_truth, kept_prediction


def with_background(pair: Pair) -> Pair:
    """The same with an empty first row, on which the slow rules rely for `np.unique(...)[1:]`."""
    truth, prediction = (labels.copy() for labels in pair)
    truth[0], prediction[0] = 0, 0
    return truth, prediction


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_rules_applied_image_by_image(seed: int, random_pair: RandomPair) -> None:
    truth, prediction = with_background(random_pair(seed))
    rng = np.random.default_rng(seed)
    ignore = np.zeros(truth.shape, dtype=bool)
    for _ in range(int(rng.integers(1, 6))):
        y, x = rng.integers(0, truth.shape[0]), rng.integers(0, truth.shape[1])
        ignore[y : y + 15, x : x + 15] = True
    expected = score(*without_ignored(truth, prediction, ignore))
    assert score(truth, prediction, ignore) == expected


def test_an_empty_mask_changes_nothing(random_pair: RandomPair) -> None:
    truth, prediction = random_pair(0)
    assert score(truth, prediction, np.zeros(truth.shape, dtype=bool)) == score(truth, prediction)


def test_all_ignored_is_all_empty() -> None:
    labels = np.ones((4, 4), dtype=int)
    assert score(labels, np.zeros_like(labels), labels > 0)["pq"] == 1


def test_a_prediction_mostly_in_an_ignored_area_is_no_false_positive() -> None:
    truth = np.array([[1, 1, 0, 0, 0, 0, 0]])
    prediction = np.array([[1, 1, 0, 2, 2, 2, 0]])
    ignore = np.array([[False, False, False, False, True, True, True]])
    assert score(truth, prediction)["dq"] == pytest.approx(2 / 3)
    found = score(truth, prediction, ignore)
    assert (found["dq"], found["dice"], found["count_error"]) == (1, 1, 0)


def test_a_prediction_half_in_an_ignored_area_still_counts() -> None:
    truth = np.array([[1, 1, 0, 0, 0, 0, 0]])
    prediction = np.array([[1, 1, 0, 2, 2, 2, 2]])
    ignore = np.array([[False, False, False, False, False, True, True]])
    assert OverlapTable.from_labels(truth, prediction, ignore).pred_areas.tolist() == [2, 2]


def test_a_nucleus_mostly_in_an_ignored_area_is_not_asked_for_and_its_rest_is_ignored() -> None:
    truth = np.array([[3, 3, 0, 5, 5, 5, 5, 5]])
    ignore = np.array([[False, False, False, False, False, True, True, True]])
    nothing = np.zeros_like(truth)
    only_first = np.where(truth == 3, 1, 0)
    rest_too = np.array([[1, 1, 0, 2, 2, 0, 0, 0]])
    assert score(truth, nothing, ignore)["count_error"] == -1
    for prediction in (only_first, rest_too, truth):
        found = score(truth, prediction, ignore)
        assert (found["dq"], found["dice"], found["count_error"]) == (1, 1, 0)
    assert per_nucleus(truth, only_first, ignore).id.tolist() == [3]


def test_a_prediction_mostly_ignored_that_finds_a_remaining_nucleus_stays() -> None:
    # Nucleus: 5 seen and 4 ignored; its prediction: 3 seen and 4 ignored, so mostly ignored.
    truth = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 1, 0]])
    prediction = np.array([[0, 0, 2, 2, 2, 2, 2, 2, 2, 0]])
    ignore = np.arange(10)[None] >= 5
    table = OverlapTable.from_labels(truth, prediction, ignore)
    assert (table.true_areas.tolist(), table.pred_areas.tolist(), table.overlaps.tolist()) == ([5], [3], [3])
    assert score(table)["dq"] == 1
