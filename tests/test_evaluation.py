from __future__ import annotations

import numpy as np
import pytest

from nuclora.errors import NucloraError
from nuclora.evaluation import Evaluation

NAMES = ["human liver/human_liver_01", "a", 'deep/er/and "quoted", with comma', "Gewebe ä/ß 2"]


def _row(name: str, fold: int, values) -> dict:
    return {"tile": name, "group": "human liver, left", "fold": fold, **values}


def test_scores_come_back(tmp_path):
    evaluation = Evaluation(tmp_path)
    rows = [_row(name, fold, {"dice": fold / 7, "aji": 1}) for fold, name in enumerate(NAMES, 1)]
    for row in rows:
        evaluation.add(row, np.zeros((3, 4), np.int32))
    assert Evaluation(tmp_path).rows == rows
    assert all(type(row["fold"]) is int for row in evaluation.rows)


@pytest.mark.parametrize(
    "value", [1 / 3, np.float64(2 / 3), np.nextafter(1.0, 2.0), -0.0, float("inf"), 7, np.int64(7)]
)
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
