from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest

from nuclora.errors import NucloraError
from nuclora.metrics import METRICS, paired_difference, summarise

Rows = list[dict[str, object]]


def make_rows(seed: int = 0, folds: tuple[int, ...] = (40, 50, 30)) -> Rows:
    rng = np.random.default_rng(seed)
    tiles = [(fold, number) for fold, count in enumerate(folds, 1) for number in range(count)]
    return [
        {
            "tile": f"{fold}_{number:03}",
            "group": ("liver", "spleen", "brain")[number % 3],
            "fold": fold,
            **{metric: float(rng.normal(0.5 + 0.1 * fold, 0.1)) for metric in METRICS},
        }
        for fold, number in tiles
    ]


def mean_of(rows: Rows, metric: str, **wanted: object) -> float:
    chosen = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return statistics.fmean(float(str(row[metric])) for row in chosen)


def test_means_are_those_of_a_plain_loop() -> None:
    rows = make_rows()
    summary = summarise(rows)
    assert [(fold["fold"], fold["tiles"]) for fold in summary.folds] == [(1, 40), (2, 50), (3, 30)]
    assert sorted(summary.groups) == ["brain", "liver", "spleen"]
    for metric in METRICS:
        folds = [mean_of(rows, metric, fold=fold) for fold in (1, 2, 3)]
        assert [fold[metric] for fold in summary.folds] == pytest.approx(folds)
        assert summary.mean[metric] == pytest.approx(statistics.fmean(folds))
        assert summary.pooled[metric] == pytest.approx(mean_of(rows, metric))
        assert summary.groups["liver"][metric] == pytest.approx(mean_of(rows, metric, group="liver"))
    assert summary.groups["liver"]["tiles"] == 41
    assert summary.mean["pq"] != pytest.approx(summary.pooled["pq"], abs=1e-4)


def test_the_interval_is_near_that_of_theory_within_folds() -> None:
    rows = make_rows(3, (400, 500, 300))
    summary = summarise(rows)
    for metric in METRICS:
        low, high = summary.interval[metric]
        # The folds' own differences (0.1 each) must not widen it.
        spread = [
            statistics.variance(float(str(row[metric])) for row in rows if row["fold"] == fold) / count
            for fold, count in ((1, 400), (2, 500), (3, 300))
        ]
        half = 1.96 * math.sqrt(sum(spread)) / 3
        assert (high - low) / 2 == pytest.approx(half, rel=0.1)
        assert (low + high) / 2 == pytest.approx(summary.mean[metric], abs=0.15 * half)


def test_many_tiles_are_drawn_in_parts_to_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows()
    whole = summarise(rows).interval
    monkeypatch.setattr("nuclora.metrics.aggregate._DRAWS", 999)
    # The generator yields the same stream of draws in parts, fold by fold.
    parts = summarise(rows).interval
    assert {name: pytest.approx(ends, abs=1e-12) for name, ends in parts.items()} == whole


def test_seed_and_not_order_decides_the_interval() -> None:
    rows = make_rows()
    assert summarise(rows[::-1], seed=4) == summarise(rows, seed=4)
    assert summarise(rows, seed=4).interval != summarise(rows, seed=5).interval
    assert summarise(rows, seed=4).mean == summarise(rows, seed=5).mean


def test_metrics_are_correlated_in_one_resampling() -> None:
    rows = [{**row, "pq": float(str(row["dice"])) - 0.1} for row in make_rows()]
    interval = summarise(rows, metrics=["dice", "pq"]).interval
    assert [end - 0.1 for end in interval["dice"]] == pytest.approx(interval["pq"])


def test_the_document_survives_json() -> None:
    document = summarise(make_rows()).to_dict()
    assert list(document) == ["folds", "mean", "pooled", "interval", "groups"]
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_rows_as_read_from_csv() -> None:
    rows = make_rows()
    text = [{key: str(value) for key, value in row.items()} for row in rows]
    assert summarise(text) == summarise(rows)


def test_where_a_fold_has_one_tile_there_is_no_interval() -> None:
    summary = summarise([{"tile": "a", "group": "liver", "fold": 3, "pq": 0.25}], metrics=["pq"])
    assert summary.interval == {"pq": None}
    assert summary.folds == [{"fold": 3, "tiles": 1, "pq": 0.25}]
    rows = make_rows(folds=(1, 1))
    assert set(summarise(rows).interval.values()) == {None}
    better = [{**row, "pq": float(str(row["pq"])) + 0.1} for row in rows]
    assert paired_difference(better, rows, "pq") == (pytest.approx(0.1), None, None)
    assert set(summarise(make_rows(folds=(1, 2))).interval.values()) == {None}
    assert None not in summarise(make_rows(folds=(2, 2))).interval.values()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pq": math.nan}, "tile 1_005 has pq nan"),
        ({"pq": math.inf}, "tile 1_005 has pq inf"),
        ({"pq": None}, "tile 1_005 has pq None"),
        ({"fold": "first"}, "tile 1_005 has fold first"),
        ({"tile": "1_006"}, "tile 1_006 is there twice"),
    ],
)
def test_a_faulty_row_is_refused_by_name(change: dict[str, object], words: str) -> None:
    rows = make_rows()
    rows[5] = {**rows[5], **change}
    with pytest.raises(NucloraError, match=words):
        summarise(rows)


def test_missing_values_and_no_rows_are_refused() -> None:
    rows = make_rows()
    del rows[7]["msa"]
    with pytest.raises(NucloraError, match="tile 1_007 has no msa"):
        summarise(rows)
    with pytest.raises(NucloraError, match="no tiles"):
        summarise([])
    with pytest.raises(NucloraError, match=r"tile \(unnamed\) has no tile"):
        summarise([{"fold": 1}])


def test_a_paired_difference_is_surer_than_its_parts() -> None:
    rows_b = make_rows()
    rng = np.random.default_rng(9)
    rows_a = [{**row, "pq": float(str(row["pq"])) + 0.02 + float(rng.normal(0, 0.01))} for row in rows_b]
    difference, low, high = paired_difference(rows_a, rows_b[::-1], "pq")
    assert difference == pytest.approx(summarise(rows_a).mean["pq"] - summarise(rows_b).mean["pq"])
    assert 0.015 < low < difference < high < 0.025
    back = paired_difference(rows_b, rows_a, "pq")
    assert back == pytest.approx((-difference, -high, -low), abs=1e-3)


def test_a_paired_difference_needs_the_same_tiles() -> None:
    rows = make_rows()
    with pytest.raises(NucloraError, match="2 tiles are in one of the two only, first 1_000"):
        paired_difference(rows[1:], rows[:-1], "pq")


def test_a_difference_that_is_the_folds_alone_is_sure():
    rows_b = make_rows()
    rows_a = [{**row, "pq": float(str(row["pq"])) + 0.1 * int(str(row["fold"]))} for row in rows_b]
    assert paired_difference(rows_a, rows_b, "pq") == pytest.approx((0.2, 0.2, 0.2))
