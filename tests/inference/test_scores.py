from __future__ import annotations

import itertools

import numpy as np
import pytest
from skimage.segmentation import expand_labels

from nuclora.data.synthetic import ORGANS, synthesize_tile
from nuclora.data.targets import dense_targets
from nuclora.inference.scores import agreement, calibrate, expected_ious, find_nuclei, true_ious
from nuclora.metrics import OverlapTable
from nuclora.recipe import DecodeSettings


@pytest.fixture
def labels():
    labels = np.zeros((64, 64), np.int32)
    labels[4:20, 4:20] = 1
    labels[30:50, 30:50] = 2
    return labels


def test_sure_maps_give_one_and_doubt_of_any_kind_less(labels):
    foreground = dense_targets(labels)[0]
    calm = np.zeros_like(foreground)
    sure = agreement(labels, foreground, calm)
    # Half a pixel of soft edge around a square of 16 costs a tenth.
    assert (sure > 0.88).all()
    assert (agreement(labels, 0.7 * foreground, calm) < 0.75).all()
    apart = np.where(np.indices(foreground.shape)[0] < 12, 8.0, 0.0).astype(np.float32)
    doubted = agreement(labels, foreground, apart)
    assert doubted[0] < 0.3
    assert doubted[1] == pytest.approx(sure[1], abs=1e-6)


def test_nuclei_that_the_views_disagree_on_are_left_out_and_the_others_renumbered(labels):
    maps = dense_targets(labels)
    apart = np.where(np.indices(maps[0].shape)[0] < 12, 8.0, 0.0).astype(np.float32)
    every, scores = find_nuclei(maps, apart, labels.shape, DecodeSettings(), 10)
    assert every.max() == len(scores) == 2
    assert scores[0] < 0.3 < 0.8 < scores[1]
    sure, kept = find_nuclei(maps, apart, labels.shape, DecodeSettings(agreement=0.5), 10)
    np.testing.assert_array_equal(sure, np.where(every == 2, 1, 0))
    np.testing.assert_array_equal(kept, scores[1:])
    none, kept = find_nuclei(maps, apart, labels.shape, DecodeSettings(agreement=0.99), 10)
    assert none.max() == 0
    assert kept.size == 0


def test_foreground_left_unclaimed_around_a_nucleus_counts_against_it(labels):
    foreground = dense_targets(labels)[0]
    smaller = labels.copy()
    smaller[30:34] = 0
    scores = agreement(smaller, foreground, np.zeros_like(foreground))
    whole = agreement(labels, foreground, np.zeros_like(foreground))
    assert scores[1] < whole[1] - 0.05
    assert scores[0] == whole[0]


def test_no_nuclei_no_scores():
    assert agreement(np.zeros((9, 7), np.int32), np.zeros((5, 4), np.float32), np.zeros((5, 4), np.float32)).size == 0
    assert calibrate(np.zeros(0), np.zeros(0)) == []


def test_what_is_left_out_of_another_nucleus_leaves_no_hole():
    y, x = np.mgrid[:96, :96]
    truth = (np.hypot(y - 47.5, x - 47.5) <= 38).astype(np.int32)
    truth[np.hypot(y - 47.5, x - 68.5) <= 8] = 2
    maps = dense_targets(truth)
    doubt = 8 * (np.hypot(y - 47.5, x - 68.5) <= 9)[::2, ::2].astype(np.float32)
    both, _ = find_nuclei(maps, doubt, truth.shape, DecodeSettings(agreement=0), 10)
    assert both.max() == 2
    one, scores = find_nuclei(maps, doubt, truth.shape, DecodeSettings(agreement=0.55), 10)
    assert len(scores) == one.max() == 1
    assert one[truth > 0].mean() > 0.95
    assert (one[40:56, 61:77] == 1).all()


def test_equal_scores_are_promised_their_mean():
    # The order of the tiles must not deal good and bad ones of one score into different bins.
    ious = np.repeat([0.0, 1.0], 20)
    assert calibrate(np.full(40, 0.8), ious) == calibrate(np.full(40, 0.8), ious[::-1]) == [(0.8, 0.5)]


def test_true_ious_are_those_of_the_best_partner():
    truth = np.array([[1, 1, 1, 2, 2, 0, 0]])
    prediction = np.array([[3, 3, 3, 3, 0, 0, 5]])
    np.testing.assert_allclose(true_ious(OverlapTable.from_labels(truth, prediction)), [0.75, 0.0])


def test_calibrated_scores_are_the_mean_iou_at_that_score():
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    # The truth is a curve of the score, with noise; a detector that is too sure of itself.
    ious = np.clip(scores**2 + rng.normal(0, 0.1, scores.shape), 0, 1)
    points = calibrate(scores, ious)
    assert len(points) <= 20
    assert all(a[0] < b[0] and a[1] <= b[1] for a, b in itertools.pairwise(points))
    at = np.array([0.2, 0.5, 0.8], np.float32)
    np.testing.assert_allclose(expected_ious(at, points), at**2, atol=0.04)


def test_without_calibration_scores_stay():
    scores = np.array([0.2, 0.9], np.float32)
    assert expected_ious(scores, []) is scores


def test_agreement_is_the_formula_written_out():
    labels = np.zeros((16, 16), np.int32)
    labels[4:12, 4:12] = 1
    foreground = np.full((8, 8), 0.5, np.float32)
    # 64 pixels of a half; around them a ring three pixels wide, of a half too, which counts half.
    ring = int((expand_labels(labels, 3) > 0).sum()) - 64
    expected = 64 * 0.5 / (64 + 0.5 * ring)
    assert agreement(labels, foreground, np.zeros((8, 8), np.float32)) == pytest.approx([expected], rel=1e-5)
    assert agreement(labels, foreground, np.full((8, 8), 4, np.float32)) == pytest.approx(
        [expected * np.exp(-0.5)], rel=1e-5
    )


def test_what_is_just_as_sure_as_asked_stays():
    truth = synthesize_tile(96, 0, ORGANS[0]).labels
    maps = dense_targets(truth)
    doubt = 3 * np.random.default_rng(0).random(maps[0].shape, dtype=np.float32)
    _, scores = find_nuclei(maps, doubt, truth.shape, DecodeSettings(agreement=0), 10)
    limit = float(np.sort(scores)[len(scores) // 2])
    _, kept = find_nuclei(maps, doubt, truth.shape, DecodeSettings(agreement=limit), 10)
    np.testing.assert_array_equal(kept, scores[scores >= np.float32(limit)])


def test_bins_count_by_their_nuclei():
    # Equal scores share a bin, and where the IoU would fall with the score bins are joined.
    scores = np.repeat([0.1, 0.2, 0.9], [30, 10, 40])
    ious = np.repeat([0.8, 0.4, 0.95], [30, 10, 40])
    assert calibrate(scores, ious) == [(0.1, pytest.approx(0.7)), (0.2, pytest.approx(0.7)), (0.9, pytest.approx(0.95))]
