from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nuclora.evaluation import Evaluation, Row
from nuclora.report import breakdowns
from nuclora.report.reliability import bins_of, calibration, cuts_of
from nuclora.report.style import render
from nuclora.run import Run


def calibration_of(run: Run) -> dict:
    return calibration((run.fine_tuned(row["fold"], "automatic"), row) for row in run.rows("fine-tuned", "automatic"))


def test_bins_hold_equally_many_nuclei_in_order() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(1000)
    ious = np.clip(scores + rng.normal(0, 0.1, 1000), 0, 1)
    bins = bins_of(scores, ious)
    assert [part["nuclei"] for part in bins] == [100] * 10
    ranks = np.argsort(scores)
    for place, part in enumerate(bins):
        mine = ranks[100 * place : 100 * (place + 1)]
        assert part["score"] == pytest.approx(scores[mine].mean())
        assert part["iou"] == pytest.approx(ious[mine].mean())
        assert part["quartiles"] == pytest.approx(np.percentile(ious[mine], [25, 75]))


def test_equal_scores_share_a_bin_whatever_the_order() -> None:
    scores = np.array([0.9] * 60 + [0.2] * 30 + [0.5] * 10)
    ious = np.linspace(0, 1, 100)
    bins = bins_of(scores, ious)
    assert [(part["score"], part["nuclei"]) for part in bins] == [
        (pytest.approx(0.2), 30),
        (pytest.approx(0.5), 10),
        (pytest.approx(0.9), 60),
    ]
    assert [part["iou"] for part in bins_of(scores[::-1], ious[::-1])] == pytest.approx([part["iou"] for part in bins])


@pytest.mark.parametrize("count", [1, 2, 9, 11])
def test_few_nuclei(count: int) -> None:
    scores = np.linspace(0.3, 0.7, count)
    bins, cuts = bins_of(scores, scores), cuts_of(scores, scores, 3)
    assert sum(part["nuclei"] for part in bins) == count
    assert all(part["score"] == pytest.approx(part["iou"]) for part in bins)
    assert cuts[0]["nuclei"] == count
    assert render(breakdowns.score_reliability(bins, cuts), "png").startswith(b"\x89PNG")


def test_cuts_count_what_is_left() -> None:
    scores = np.array([0.1, 0.25, 0.3, 0.62, 0.62, 0.8])
    ious = np.array([0.0, 0.7, 0.5, 0.4, 0.9, 0.8])
    cuts = {cut["score"]: cut for cut in cuts_of(scores, ious, 4)}
    assert list(cuts) == pytest.approx([0.05 * step for step in range(17)])
    # An IoU of just .5 is no match.
    assert cuts[0.0] == {"score": 0.0, "nuclei": 6, "kept": 1.0, "precision": 0.5, "recall": 0.75, "f1": 0.6}
    assert cuts[0.25]["nuclei"] == 5
    assert cuts[0.3]["nuclei"] == 4
    assert (cuts[0.6]["kept"], cuts[0.6]["precision"], cuts[0.6]["recall"]) == (0.5, 2 / 3, 0.5)
    assert cuts[0.8]["precision"] == 1


def test_numbers_are_those_of_the_nuclei(dense_run: Run) -> None:
    rows = dense_run.rows("fine-tuned", "automatic")
    nuclei = [n for row in rows for n in dense_run.fine_tuned(row["fold"], "automatic").nuclei(row["tile"])]
    found = calibration_of(dense_run)
    assert found["nuclei"] == len(nuclei) == sum(row["nuclei_predicted"] for row in rows)
    assert found["tiles"] == len(rows)
    off = 0.0
    for fold in dense_run.folds.folds:
        own = [
            n
            for row in rows
            if row["fold"] == fold
            for n in dense_run.fine_tuned(fold, "automatic").nuclei(row["tile"])
        ]
        bins = bins_of(*(np.array([nucleus[key] for nucleus in own]) for key in ("score", "iou")))
        off += sum(part["nuclei"] * abs(part["score"] - part["iou"]) for part in bins)
    assert found["error"] == pytest.approx(off / len(nuclei))
    # Uncut, matches per true nucleus and per prediction are what the pooled F1 is made of.
    right = sum(nucleus["iou"] > 0.5 for nucleus in nuclei)
    true = sum(row["nuclei_true"] for row in rows)
    assert found["cuts"][0]["precision"] == pytest.approx(right / len(nuclei))
    assert found["cuts"][0]["recall"] == pytest.approx(right / true)
    assert found["cuts"][0]["f1"] == pytest.approx(2 * right / (len(nuclei) + true))


def test_what_one_fold_promises_too_much_makes_up_for_no_other(tmp_path: Path) -> None:
    evaluated = []
    for fold, iou in ((1, 0.4), (2, 0.8)):
        evaluation = Evaluation(tmp_path / str(fold))
        row: Row = {"tile": "a", "group": "g", "fold": fold, "nuclei_true": 9, "nuclei_predicted": fold}
        evaluation.add(row, np.zeros((4, 4), np.int32), [{"score": 0.6, "iou": iou}] * fold)
        evaluated.append((evaluation, row))
    assert calibration(evaluated)["error"] == pytest.approx(0.2)


def test_a_perfect_score_has_no_error(tmp_path: Path) -> None:
    evaluation = Evaluation(tmp_path)
    row: Row = {"tile": "a", "group": "g", "fold": 1, "nuclei_true": 9, "nuclei_predicted": 9}
    nuclei = [{"label": n, "area": 20, "score": n / 10, "iou": n / 10} for n in range(1, 10)]
    evaluation.add(row, np.zeros((4, 4), np.int32), nuclei)
    assert calibration([(evaluation, row)])["error"] == 0


def test_tiles_without_scores_are_passed_over(run: Run, dense_run: Run, tmp_path: Path) -> None:
    assert calibration_of(run) == {}
    rows = dense_run.rows("fine-tuned", "automatic")
    pairs = [(dense_run.fine_tuned(row["fold"], "automatic"), row) for row in rows]
    unscored = (Evaluation(tmp_path), rows[0] | {"tile": "older"})
    assert calibration([*pairs, unscored]) == calibration(pairs)


def test_a_model_that_finds_nothing(tmp_path: Path) -> None:
    row: Row = {"tile": "a", "group": "g", "fold": 1, "nuclei_true": 3, "nuclei_predicted": 0}
    evaluation = Evaluation(tmp_path)
    evaluation.add(row, np.zeros((4, 4), np.int32), [])
    assert calibration([(evaluation, row)]) == {}
