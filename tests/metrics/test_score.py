from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from nuclora import metrics
from nuclora.errors import NucloraError
from nuclora.metrics import METRICS, OverlapTable, score

Pair = tuple[NDArray[np.int32], NDArray[np.int32]]
RandomPair = Callable[[int], Pair]


def slow_score(truth: NDArray[np.integer], prediction: NDArray[np.integer]) -> dict[str, float]:
    """The published definitions, with one full mask for each instance and a full matrix of pairs."""
    true_masks = [truth == label for label in np.unique(truth) if label != 0]
    pred_masks = [prediction == label for label in np.unique(prediction) if label != 0]
    counts = len(true_masks), len(pred_masks)
    error = float(counts[1] - counts[0])
    if max(counts) == 0 or min(counts) == 0:
        value = 1.0 if max(counts) == 0 else 0.0
        return dict.fromkeys(METRICS, value) | {"count_error": error}
    inter, union = np.zeros(counts), np.zeros(counts)
    for (i, t), (j, p) in itertools.product(enumerate(true_masks), enumerate(pred_masks)):
        inter[i, j], union[i, j] = np.sum(t & p), np.sum(t | p)
    iou = inter / union
    key = inter / (union + 1e-6)

    best = [(i, int(key[i].argmax())) for i in range(counts[0]) if key[i].max() > 0]
    unique = [(i, j) for i, j in zip(*linear_sum_assignment(-key), strict=True) if key[i, j] > 0]

    def aggregate(pairs: list[tuple[int, int]]) -> float:
        lone_true = set(range(counts[0])) - {i for i, _ in pairs}
        lone_pred = set(range(counts[1])) - {j for _, j in pairs}
        total = sum(union[i, j] for i, j in pairs)
        total += sum(true_masks[i].sum() for i in lone_true) + sum(pred_masks[j].sum() for j in lone_pred)
        return float(sum(inter[i, j] for i, j in pairs) / total)

    tp = int((iou > 0.5).sum())
    fp, fn = counts[1] - tp, counts[0] - tp
    sq = iou[iou > 0.5].sum() / (tp + 1e-6)
    dq = tp / (tp + 0.5 * fp + 0.5 * fn)
    accuracies = []
    for threshold in np.arange(10, 20) / 20:
        hits = int((iou > threshold).sum())
        accuracies.append(hits / (counts[0] + counts[1] - hits))
    foreground = (truth > 0).sum() + (prediction > 0).sum()
    return {
        "dice": 2 * ((truth > 0) & (prediction > 0)).sum() / foreground,
        "aji": aggregate(best),
        "aji_plus": aggregate(unique),
        "dq": dq,
        "sq": sq,
        "pq": dq * sq,
        "f1": 2 * tp / (2 * tp + fp + fn),
        "msa": float(np.mean(accuracies)),
        "count_error": error,
    }


def test_equals_the_fields_reference_code(shared_data: Path) -> None:
    expected = json.loads((shared_data / "metrics/expected.json").read_text())
    with np.load(shared_data / "metrics/cases.npz", allow_pickle=False) as cases:
        assert len(expected) == 24
        for key, values in expected.items():
            found = score(cases[f"{key}/true"], cases[f"{key}/pred"])
            assert {name: found[name] for name in values} == pytest.approx(values, abs=1e-9), key


@pytest.mark.parametrize("seed", range(80))
def test_equals_a_slow_reference_on_random_maps(seed: int, random_pair: RandomPair) -> None:
    truth, prediction = random_pair(seed)
    assert score(truth, prediction) == pytest.approx(slow_score(truth, prediction), abs=1e-12)


def test_random_maps_are_not_all_alike(random_pair: RandomPair) -> None:
    qualities = [score(*random_pair(seed))["pq"] for seed in range(80)]
    assert len({round(quality, 3) for quality in qualities}) > 30
    assert min(qualities) == 0


def test_a_nucleus_cut_in_three_by_hand() -> None:
    truth = np.zeros((4, 10), dtype=np.uint8)
    truth[:, :5] = 3  # 20 pixels
    truth[:2, 6:8] = 9  # 4 pixels
    prediction = np.zeros((4, 10), dtype=np.int64)
    prediction[:, :3] = 1  # 12 of nucleus 3
    prediction[:, 3:5] = 2  # 8 of nucleus 3
    prediction[:2, 6:9] = 4  # nucleus 9 and two more
    found = score(truth, prediction)
    assert found == pytest.approx(
        {
            "dice": 48 / 50,
            "aji": 16 / 34,
            "aji_plus": 16 / 34,
            "dq": 2 / 2.5,
            "sq": (12 / 20 + 4 / 6) / (2 + 1e-6),
            "pq": 0.8 * (12 / 20 + 4 / 6) / (2 + 1e-6),
            "f1": 0.8,
            # Over .5 and .55 both match; at .6 the cut one no longer; nothing over .65 but 4/6.
            "msa": (2 * 2 / 3 + 2 * 1 / 4) / 10,
            "count_error": 1.0,
        },
        abs=1e-12,
    )


def test_an_iou_of_exactly_a_threshold_does_not_match() -> None:
    # IoU 11 / 20 = 0.55, which no float holds exactly.
    truth, prediction = np.ones((1, 20), dtype=int), np.zeros((1, 20), dtype=int)
    prediction[:, :11] = 1
    assert metrics.mean_segmentation_accuracy(truth, prediction) == pytest.approx(0.1)
    prediction[:, 10] = 0
    assert metrics.f1(truth, prediction) == 0


def test_a_prediction_may_serve_two_nuclei_in_aji_but_not_in_aji_plus() -> None:
    truth, prediction = [[1, 1, 2, 2, 2]], [[7, 7, 7, 7, 7]]
    assert metrics.aji(truth, prediction) == pytest.approx(5 / 10)
    assert metrics.aji_plus(truth, prediction) == pytest.approx(3 / 7)


@pytest.mark.parametrize("side", [30, 90])
def test_large_touching_components_are_assigned_exactly(side: int) -> None:
    # Everything is one component; 900 cells against as many goes to the sparse solver.
    rng = np.random.default_rng(side)
    y, x = np.mgrid[:side, :side]
    truth = y // 3 * 100 + x // 3 + 1
    prediction = (y + 1) // 3 * 100 + (x + rng.integers(0, 3, size=(side, 1))) // 3 + 1
    table = OverlapTable.from_labels(truth, prediction)
    keys = np.zeros((table.true_ids.size, table.pred_ids.size))
    keys[table.rows, table.cols] = table.overlaps / (table.unions + 1e-6)
    shared = np.zeros(keys.shape)
    shared[table.rows, table.cols] = table.overlaps
    total = shared[linear_sum_assignment(keys, maximize=True)].sum()
    areas = table.true_areas.sum() + table.pred_areas.sum()
    assert metrics.aji_plus(table) == pytest.approx(total / (areas - total), abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_names_of_instances_do_not_matter(seed: int, random_pair: RandomPair) -> None:
    truth, prediction = random_pair(seed)
    rng = np.random.default_rng(seed)
    renamed = rng.permutation(np.arange(1, 10_000))[: prediction.max() + 1] * 17
    renamed[0] = 0
    relabelled = score(truth, renamed[prediction])
    # AJI alone may take another one of two equally good predictions, as the published code does.
    plain = score(truth, prediction)
    assert {**relabelled, "aji": 0} == pytest.approx({**plain, "aji": 0}, abs=1e-12)
    monotone = score(truth * 7, prediction * 3)
    assert monotone == plain


@pytest.mark.parametrize("dtype", ["u1", "i1", ">u2", "<i2", "u4", ">i4", "i8", "u8"])
def test_every_integer_dtype_gives_the_same(dtype: str, random_pair: RandomPair) -> None:
    truth, prediction = (np.unique(labels, return_inverse=True)[1] for labels in random_pair(0))
    plain = score(truth, prediction)
    assert 0 < plain["pq"] < 1
    assert score(truth.astype(dtype), prediction.astype(np.int32)) == plain
    assert score(np.asfortranarray(truth), prediction.astype(dtype)[:, ::-1][:, ::-1]) == plain


def test_huge_ids_need_no_huge_tables(random_pair: RandomPair) -> None:
    truth, prediction = random_pair(0)
    far = truth.astype(np.uint64) * np.uint64(2**53 + 1)
    assert far.max() > 2**58
    assert score(far, prediction.astype(np.int64) << 40) == score(truth, prediction)
    assert OverlapTable.from_labels(far, prediction).true_ids.tolist() == np.unique(far)[1:].tolist()


def test_huge_ids_without_background() -> None:
    labels = np.array([[2**63, 2**63], [2**64 - 1, 5]], dtype=np.uint64)
    assert OverlapTable.from_labels(labels, labels).true_ids.tolist() == [5, 2**63, 2**64 - 1]


def test_transposing_and_swapping_do_not_matter(random_pair: RandomPair) -> None:
    for seed in range(8):
        truth, prediction = random_pair(seed)
        plain = score(truth, prediction)
        assert score(truth.T, prediction.T) == pytest.approx(plain, abs=1e-12)
        swapped = score(prediction, truth)
        for name in ("dice", "aji_plus", "dq", "sq", "pq", "f1", "msa"):
            assert swapped[name] == pytest.approx(plain[name], abs=1e-12)
        assert swapped["count_error"] == -plain["count_error"]


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (1, 1), (6, 7)])
def test_two_empty_maps_score_one(shape: tuple[int, int]) -> None:
    empty = np.zeros(shape, dtype=np.int32)
    assert score(empty, empty) == dict.fromkeys(METRICS, 1.0) | {"count_error": 0.0}


def test_one_empty_map_scores_zero() -> None:
    empty, two = np.zeros((3, 4), dtype=np.int32), np.array([[1, 1, 0, 2]] * 3)
    assert score(two, empty) == dict.fromkeys(METRICS, 0.0) | {"count_error": -2.0}
    assert score(empty, two) == dict.fromkeys(METRICS, 0.0) | {"count_error": 2.0}


def test_a_perfect_map_scores_one_but_for_the_published_offset() -> None:
    labels = np.arange(1, 13).reshape(3, 4)
    found = score(labels, labels)
    assert found["sq"] == found["pq"] == 12 / (12 + 1e-6)
    assert [found[name] for name in ("dice", "aji", "aji_plus", "dq", "f1", "msa")] == [1.0] * 6


def test_score_is_made_of_the_public_functions(random_pair: RandomPair) -> None:
    truth, prediction = random_pair(4)
    table = OverlapTable.from_labels(truth, prediction)
    found = score(table)
    assert tuple(found) == METRICS
    assert all(type(value) is float for value in found.values())
    assert found == score(truth, prediction)
    names = {"dice": metrics.dice, "aji": metrics.aji, "aji_plus": metrics.aji_plus, "f1": metrics.f1}
    names |= {"msa": metrics.mean_segmentation_accuracy, "count_error": metrics.count_error}
    for name, function in names.items():
        assert function(truth, prediction) == function(table) == found[name]
    assert metrics.panoptic_quality(truth, prediction) == (found["dq"], found["sq"], found["pq"])


def test_inputs_stay_as_they_are(random_pair: RandomPair) -> None:
    truth, prediction = random_pair(0)
    ignore = np.zeros(truth.shape, dtype=bool)
    ignore[:5] = True
    copies = truth.copy(), prediction.copy(), ignore.copy()
    for array in (truth, prediction, ignore):
        array.setflags(write=False)
    score(truth, prediction, ignore)
    for array, copy in zip((truth, prediction, ignore), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


LABELS = np.array([[0, 1], [2, 2]])


@pytest.mark.parametrize(
    ("truth", "prediction", "ignore", "words"),
    [
        (LABELS > 0, LABELS, None, "truth has dtype bool"),
        (LABELS, LABELS.astype(float), None, "prediction has dtype float64"),
        (LABELS, LABELS[:1], None, r"truth has shape \(2, 2\) and prediction \(1, 2\)"),
        (LABELS[0], LABELS[0], None, r"truth has shape \(2,\)"),
        (np.stack([LABELS] * 3, axis=-1), LABELS, None, r"truth has shape \(2, 2, 3\)"),
        (LABELS - 1, LABELS, None, "truth has negative ids"),
        (LABELS, -LABELS, None, "prediction has negative ids"),
        (LABELS, LABELS, LABELS, "ignore mask has dtype int64"),
        (LABELS, LABELS, LABELS[:1] > 0, r"ignore mask has shape \(1, 2\)"),
        (LABELS, None, None, "no prediction"),
        (OverlapTable.from_labels(LABELS, LABELS), LABELS, None, "already holds the prediction"),
    ],
)
def test_what_cannot_be_scored_is_refused(truth: object, prediction: object, ignore: object, words: str) -> None:
    with pytest.raises(NucloraError, match=words):
        score(truth, prediction, ignore)  # type: ignore[arg-type]


def test_a_slide_sized_map_with_many_nuclei_holds_together() -> None:
    # 10,000 disjoint nuclei, each found but for its last column; no memory for a 10,000 x 10,000 table.
    side, cell = 1200, 12
    y, x = np.mgrid[:side, :side]
    inside = (y % cell < 8) & (x % cell < 8)
    truth = np.where(inside, y // cell * 100 + x // cell + 1, 0).astype(np.int32)
    prediction = np.where(x % cell < 7, truth, 0)
    found = score(truth, prediction)
    assert found["count_error"] == 0
    assert found["aji"] == found["aji_plus"] == 7 / 8
    assert found["dice"] == pytest.approx(14 / 15)
    assert found["pq"] == pytest.approx(7 / 8, abs=1e-9)
