from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from nuclora.metrics import OverlapTable, classify_errors, per_nucleus

RandomPair = Callable[[int], tuple[NDArray[np.int32], NDArray[np.int32]]]


def test_two_nuclei_under_one_prediction_are_merged_however_unequal() -> None:
    errors = classify_errors([[1, 1, 1, 1, 1, 1, 2, 2, 0]], [[4, 4, 4, 4, 4, 4, 4, 4, 0]])
    assert (errors.merged, errors.merging) == ((1, 2), (4,))
    assert errors.counts == {"matched": 0, "missed": 0, "false": 0, "merged": 2, "split": 0}


def test_a_prediction_that_only_touches_a_neighbour_merges_nothing() -> None:
    errors = classify_errors([[1, 1, 1, 1, 2, 2, 2, 2]], [[4, 4, 4, 4, 4, 4, 5, 5]])
    assert (errors.matched, errors.missed, errors.false, errors.merged) == ((1,), (2,), (5,), ())


def test_a_nucleus_in_unequal_pieces_is_split_though_one_has_half() -> None:
    truth, prediction = [[6] * 10], [[1] * 7 + [2] * 3]
    errors = classify_errors(truth, prediction)
    assert (errors.split, errors.pieces, errors.matched, errors.false) == ((6,), (1, 2), (), ())
    assert per_nucleus(truth, prediction).matched.tolist() == [True]


def test_a_speck_inside_a_nucleus_is_false_and_no_split() -> None:
    errors = classify_errors([[6] * 40], [[1] * 37 + [2] * 3])
    assert (errors.matched, errors.split, errors.false) == ((6,), (), (2,))


def test_a_tenth_of_a_nucleus_is_a_piece() -> None:
    errors = classify_errors([[6] * 40], [[1] * 36 + [2] * 4])
    assert (errors.split, errors.pieces) == ((6,), (1, 2))


def test_two_small_pieces_of_a_nucleus_leave_it_missed() -> None:
    errors = classify_errors([[6] * 10], [[1, 1, 0, 0, 0, 0, 0, 2, 2, 2]])
    assert (errors.missed, errors.false, errors.split) == ((6,), (1, 2), ())


def test_a_merge_goes_before_a_split() -> None:
    # Prediction 1 covers most of nuclei 1 and 2; prediction 2 is a piece of nucleus 1.
    truth = [[1] * 10 + [2] * 4]
    prediction = [[2] * 3 + [1] * 11]
    errors = classify_errors(truth, prediction)
    assert (errors.merged, errors.split, errors.false) == ((1, 2), (), (2,))


def test_a_prediction_that_is_a_piece_and_merges_is_listed_once() -> None:
    # Prediction 1 lies mostly in nucleus 1 and covers nuclei 2 and 3 whole.
    truth = [[1] * 40 + [2] * 3 + [3] * 3]
    prediction = [[2] * 15 + [0] * 15 + [1] * 16]
    errors = classify_errors(truth, prediction)
    assert (errors.merged, errors.split, errors.merging, errors.pieces) == ((2, 3), (1,), (1,), (2,))


@pytest.mark.parametrize("seed", range(60))
def test_definitions_hold_for_each_nucleus_and_each_prediction(seed: int, random_pair: RandomPair) -> None:
    truth, prediction = random_pair(seed)
    errors = classify_errors(truth, prediction)
    true_ids = [int(i) for i in np.unique(truth) if i]
    pred_ids = [int(j) for j in np.unique(prediction) if j]
    assert sorted(errors.matched + errors.missed + errors.merged + errors.split) == true_ids
    unpaired = errors.false + errors.merging + errors.pieces
    assert len(set(unpaired)) == len(unpaired) == len(pred_ids) - len(errors.matched)
    assert set(unpaired) <= set(pred_ids)

    shared = {(i, j): int(((truth == i) & (prediction == j)).sum()) for i in true_ids for j in pred_ids}
    true_area = {i: int((truth == i).sum()) for i in true_ids}
    pred_area = {j: int((prediction == j).sum()) for j in pred_ids}
    for i in true_ids:
        covered = [j for j in pred_ids if shared[i, j] > true_area[i] / 2]
        merged = any(shared[k, j] > true_area[k] / 2 for j in covered for k in true_ids if k != i)
        pieces = [j for j in pred_ids if shared[i, j] > pred_area[j] / 2 and 10 * shared[i, j] >= true_area[i]]
        split = len(pieces) > 1 and sum(shared[i, j] for j in pieces) > true_area[i] / 2
        found = any(shared[i, j] / (true_area[i] + pred_area[j] - shared[i, j]) > 0.5 for j in pred_ids)
        name = "merged" if merged else "split" if split else "matched" if found else "missed"
        assert i in getattr(errors, name), (i, name)


@pytest.mark.parametrize("seed", range(12))
def test_per_nucleus_equals_masks(seed: int, random_pair: RandomPair) -> None:
    truth, prediction = random_pair(seed)
    nuclei = per_nucleus(OverlapTable.from_labels(truth, prediction))
    assert nuclei.id.tolist() == [i for i in np.unique(truth) if i]
    for label, area, best, matched in zip(nuclei.id, nuclei.area, nuclei.best_iou, nuclei.matched, strict=True):
        mask = truth == label
        ious = [(mask & (prediction == j)).sum() / (mask | (prediction == j)).sum() for j in np.unique(prediction) if j]
        assert area == mask.sum()
        assert best == pytest.approx(max(ious, default=0))
        assert matched == (best > 0.5)


def test_predictions_in_vague_areas_match_nothing() -> None:
    errors = classify_errors([[1, 1, 0, 2, 2]], [[3, 3, 0, 4, 4]], np.array([[0, 0, 0, 1, 1]], bool))
    assert (errors.matched, errors.partners, errors.false) == ((1,), (3,), ())


def test_empty_maps_have_no_errors() -> None:
    empty, one = np.zeros((3, 3), dtype=int), np.eye(3, dtype=int)
    assert sum(classify_errors(empty, empty).counts.values()) == 0
    assert classify_errors(one, empty).missed == (1,)
    assert classify_errors(empty, one).false == (1,)
    assert per_nucleus(empty, one).best_iou.size == 0
