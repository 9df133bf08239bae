from __future__ import annotations

import numpy as np
import pytest

from nuclora.errors import NucloraError
from nuclora.evaluation import Evaluation
from nuclora.metrics import METRICS

NAMES = ["human liver/human_liver_01", "a", 'deep/er/and "quoted", with comma', "Gewebe ä/ß 2"]


COUNTS = dict.fromkeys(("nuclei_true", "nuclei_predicted", "missed", "false", "merged", "split"), 3)


def _row(name: str, fold: int, values) -> dict:
    measures = dict.fromkeys(METRICS, 0.5)
    return {"tile": name, "group": "human liver, left", "fold": fold, **COUNTS, **measures, **values}


def test_scores_come_back(tmp_path):
    evaluation = Evaluation(tmp_path)
    rows = [_row(name, fold, {"dice": fold / 7, "aji": 1}) for fold, name in enumerate(NAMES, 1)]
    for row in rows:
        evaluation.add(row, np.zeros((3, 4), np.int32))
    assert Evaluation(tmp_path).rows == rows
    assert all(type(row["fold"]) is int for row in evaluation.rows)


def test_a_row_goes_under_the_columns_that_are_there(tmp_path):
    row = _row("a", 1, {name: number / 10 for number, name in enumerate(METRICS)})
    Evaluation(tmp_path).add(dict(sorted(row.items())), np.zeros((2, 2), np.int32))
    Evaluation(tmp_path).add(row | {"tile": "b"}, np.zeros((2, 2), np.int32))
    first, second = Evaluation(tmp_path).rows
    assert first == row
    assert second == row | {"tile": "b"}
    with pytest.raises(NucloraError, match=r"scores\.csv: has other columns than this nuclora writes; delete it"):
        Evaluation(tmp_path).add(row | {"tile": "c", "new": 1}, np.zeros((2, 2), np.int32))


@pytest.mark.parametrize("value", [1 / 3, np.float64(2 / 3), np.nextafter(1.0, 2.0), -0.0, 7, np.int64(7)])
def test_any_number_comes_back_exactly(value, tmp_path):
    evaluation = Evaluation(tmp_path)
    evaluation.add(_row("t", 1, {"dice": value}), np.zeros((3, 4), np.int32))
    assert evaluation.rows[0]["dice"].hex() == float(value).hex()


def test_labels_come_back_under_names_with_spaces_and_slashes(tmp_path):
    evaluation = Evaluation(tmp_path)
    maps = {
        name: np.random.default_rng(index).integers(0, 2**31 - 1, (5, 7), dtype=np.int32)
        for index, name in enumerate(NAMES)
    }
    for name, labels in maps.items():
        evaluation.add(_row(name, 1, {"dice": 0.5}), labels)
    for name, labels in maps.items():
        read = evaluation.labels(name)
        assert read.dtype == np.int32
        assert np.array_equal(read, labels)
    assert (tmp_path / "labels" / "human liver" / "human_liver_01.tif").is_file()


def test_a_score_never_lacks_its_labels(tmp_path, monkeypatch):
    evaluation = Evaluation(tmp_path)

    def fail(*_: object) -> None:
        raise NucloraError("no space")

    monkeypatch.setattr("nuclora.evaluation.write_labels", fail)
    with pytest.raises(NucloraError):
        evaluation.add(_row("a", 1, {"dice": 0.5}), np.zeros((3, 4), np.int32))
    assert Evaluation(tmp_path).rows == []


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_score_is_done_again(cut, tmp_path):
    labels = np.zeros((3, 4), np.int32)
    evaluation = Evaluation(tmp_path)
    rows = [_row(name, 1, {"dice": 0.25, "aji": 0.125}) for name in NAMES]
    for row in rows[:2]:
        evaluation.add(row, labels)
    whole = (tmp_path / "scores.csv").read_bytes()
    (tmp_path / "scores.csv").write_bytes(whole[:-cut])
    resumed = Evaluation(tmp_path)
    kept = resumed.rows
    assert kept == rows[: len(kept)]
    assert len(kept) < 2
    for row in rows[len(kept) :]:
        resumed.add(row, labels)
    assert Evaluation(tmp_path).rows == rows


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: text.replace("merged", "mixed"), "no column merged"),
        (lambda text: text.replace(",3,", ",nan,", 1), "nuclei_true is nan"),
        (lambda text: text.replace(",0.5,", ",inf,", 1), "split is inf"),
        (lambda text: text + text.splitlines(keepends=True)[-1], "tile b is there twice"),
        (lambda text: text.replace(",2,3", ",7,3"), "tile b is of fold 7"),
        (lambda text: text.replace(",0.5\n", "\n"), "TypeError"),
    ],
)
def test_damaged_scores_are_named(damage, told, tmp_path):
    evaluation = Evaluation(tmp_path)
    for name, fold in (("a", 1), ("b", 2)):
        evaluation.add(_row(name, fold, {"split": 0.5}), np.zeros((3, 4), np.int32))
    assert len(evaluation.rows_of((1, 2))) == 2
    path = tmp_path / "scores.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(NucloraError, match=rf"scores\.csv: damaged \(.*{told}.*\); delete it and run"):
        Evaluation(tmp_path).rows_of((1, 2))


@pytest.mark.parametrize(
    ("text", "told"), [("label,sc,iou\n1,1,1\n", "no column score"), ("score,iou\n1,nan\n", "iou is nan")]
)
def test_damaged_nuclei_are_named(text, told, tmp_path):
    evaluation = Evaluation(tmp_path)
    evaluation.add(_row("a", 1, {}), np.zeros((3, 4), np.int32), [{"label": 1, "score": 0.5, "iou": 0.5}])
    (tmp_path / "nuclei" / "a.csv").write_text(text)
    with pytest.raises(NucloraError, match=rf"a\.csv: damaged \(.*{told}.*\); delete the scores\.csv"):
        evaluation.nuclei("a")
    (tmp_path / "nuclei" / "a.csv").write_text("")
    assert evaluation.nuclei("a") == []


def test_labels_of_another_size_are_named(tmp_path):
    evaluation = Evaluation(tmp_path)
    evaluation.add(_row("a", 1, {}), np.zeros((3, 4), np.int32))
    assert evaluation.labels("a", (3, 4)).shape == (3, 4)
    with pytest.raises(NucloraError, match=r"a\.tif: has shape \(3, 4\), and its tile \(3, 5\); delete the scores"):
        evaluation.labels("a", (3, 5))
