"""From tiles to the table of a study: folds, their mean, organs, and how sure one can be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuclora.errors import NucloraError
from nuclora.metrics.score import METRICS

Floats = NDArray[np.float64]

_RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)
# Draws held at once, so that a set of many thousand tiles fits in memory.
_DRAWS = 4_000_000


@dataclass(frozen=True)
class Summary:
    """The measures of a set of tiles.

    Attributes:
        folds: One entry a fold, ascending: `fold`, `tiles` (their number) and the mean over its tiles by metric.
        mean: Mean of the folds' means by metric, the figure that the study reports.
        pooled: Mean over all tiles by metric, each tile counting alike whatever its fold.
        interval: 95 % interval `[low, high]` of `mean` by metric; none where a fold has one tile.
        groups: By organ: `tiles` and the mean over its tiles by metric.
    """

    folds: list[dict[str, float]]
    mean: dict[str, float]
    pooled: dict[str, float]
    interval: dict[str, list[float] | None]
    groups: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain lists, dicts and numbers, ready for JSON."""
        return asdict(self)


def summarise(rows: Sequence[Mapping[str, object]], *, metrics: Sequence[str] = METRICS, seed: int = 0) -> Summary:
    """Summarise tiles by fold, over folds, over all tiles and by organ.

    The interval is a percentile bootstrap: 2000 times, the tiles of each fold are drawn anew with
    replacement, as many as it has, and the mean of the folds' means is taken. It covers the choice of
    tiles, not that of training seeds.

    Args:
        rows: One mapping a tile with `tile`, `group` (organ), `fold` and every metric.
        metrics: Names of the metrics to summarise.
        seed: Seed of the bootstrap; equal rows and seed give equal intervals.

    Returns:
        The summary.

    Raises:
        NucloraError: If there are no rows, a tile is there twice, or a value is missing or not a finite number.

    Example:
        >>> rows = [
        ...     {"tile": "a", "group": "liver", "fold": 1, "dice": 0.8},
        ...     {"tile": "b", "group": "liver", "fold": 1, "dice": 0.6},
        ...     {"tile": "c", "group": "spleen", "fold": 2, "dice": 0.5},
        ... ]
        >>> summary = summarise(rows, metrics=["dice"])
        >>> {name: round(value, 3) for name, value in summary.mean.items()}
        {'dice': 0.6}
        >>> round(summary.pooled["dice"], 3), round(summary.groups["liver"]["dice"], 3)
        (0.633, 0.7)
    """
    rows = _by_tile(rows)
    values = np.array([[_number(row, metric) for metric in metrics] for row in rows])
    folds = np.array([_fold(row) for row in rows])
    groups = np.array([str(_get(row, "group")) for row in rows])

    by_fold = [(int(fold), values[folds == fold]) for fold in np.unique(folds)]
    ends = _interval([tiles for _, tiles in by_fold], seed)
    return Summary(
        folds=[{"fold": fold, "tiles": len(tiles), **_named(metrics, tiles.mean(axis=0))} for fold, tiles in by_fold],
        mean=_named(metrics, np.mean([tiles.mean(axis=0) for _, tiles in by_fold], axis=0)),
        pooled=_named(metrics, values.mean(axis=0)),
        interval={metric: None if ends is None else ends[:, index].tolist() for index, metric in enumerate(metrics)},
        groups={
            str(group): {
                "tiles": int((groups == group).sum()),
                **_named(metrics, values[groups == group].mean(axis=0)),
            }
            for group in np.unique(groups)
        },
    )


def paired_difference(
    rows_a: Sequence[Mapping[str, object]],
    rows_b: Sequence[Mapping[str, object]],
    metric: str,
    *,
    seed: int = 0,
) -> tuple[float, float | None, float | None]:
    """Difference of two models on the same tiles, `a` less `b`, with its 95 % interval.

    The tiles' differences are summarised as `summarise` does: mean over tiles, then over folds (those of
    `rows_a`), percentile bootstrap within folds. An interval that leaves out 0 says that the models
    differ on such tiles.

    Args:
        rows_a: One mapping a tile with `tile`, `fold` and the metric.
        rows_b: The same tiles, in any order.
        metric: Name of the metric.
        seed: Seed of the bootstrap.

    Returns:
        The mean difference, and the low and the high end of its interval; no ends where a fold has one tile.

    Raises:
        NucloraError: If the tiles are not the same, one is there twice, there are none, or a value is missing or not
            a finite number.

    Example:
        >>> a = [{"tile": name, "fold": 1, "pq": pq} for name, pq in [("x", 0.6), ("y", 0.7)]]
        >>> b = [{"tile": name, "fold": 1, "pq": pq} for name, pq in [("y", 0.6), ("x", 0.5)]]
        >>> [round(value, 3) for value in paired_difference(a, b, "pq")]
        [0.1, 0.1, 0.1]
    """
    rows_a, rows_b = _by_tile(rows_a), _by_tile(rows_b)
    of_b = {str(row["tile"]): _number(row, metric) for row in rows_b}
    alone = sorted({str(row["tile"]) for row in rows_a} ^ set(of_b))
    if alone:
        mend = "compare runs over the same tiles"
        raise NucloraError(f"{len(alone)} tiles are in one of the two only, first {alone[0]}", mend=mend)
    values = np.array([[_number(row, metric) - of_b[str(row["tile"])]] for row in rows_a])
    folds = np.array([_fold(row) for row in rows_a])
    by_fold = [values[folds == fold] for fold in np.unique(folds)]
    difference = np.mean([tiles.mean() for tiles in by_fold])
    ends = _interval(by_fold, seed)
    low, high = (None, None) if ends is None else ends[:, 0].tolist()
    return float(difference), low, high


def _interval(by_fold: Sequence[Floats], seed: int) -> Floats | None:
    """Low and high ends by metric, `(2, metrics)`; none where all draws of a fold would be its one tile."""
    if any(len(tiles) == 1 for tiles in by_fold):
        return None
    ends: Floats = np.percentile(_bootstrap(by_fold, seed), _PERCENTILES, axis=0)
    return ends


def _bootstrap(by_fold: Sequence[Floats], seed: int) -> Floats:
    """Means of fold means over `_RESAMPLES` resamplings, `(resamples, metrics)`."""
    rng = np.random.default_rng(seed)
    total = np.zeros((_RESAMPLES, by_fold[0].shape[1]))
    for tiles in by_fold:
        count = len(tiles)
        step = max(1, _DRAWS // count)
        for start in range(0, _RESAMPLES, step):
            draws = rng.integers(count, size=(min(step, _RESAMPLES - start), count))
            # How often each tile was drawn, one line a resampling: the mean is then a matrix product.
            lines = np.arange(len(draws))[:, None] * count
            times = np.bincount((draws + lines).ravel(), minlength=draws.size).reshape(draws.shape)
            total[start : start + step] += times @ tiles / count
    return total / len(by_fold)


def _named(metrics: Sequence[str], values: Floats) -> dict[str, float]:
    return dict(zip(metrics, values.tolist(), strict=True))


def _by_tile(rows: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """The rows in order of their tiles, so that the order of evaluation never shows in the figures."""
    if not rows:
        raise NucloraError("there are no tiles to summarise")
    by_tile = {str(_get(row, "tile")): row for row in rows}
    if len(by_tile) < len(rows):
        tiles = [str(row["tile"]) for row in rows]
        twice = next(tile for tile in tiles if tiles.count(tile) > 1)
        raise NucloraError(f"tile {twice} is there twice", mend="summarise one run and protocol at a time")
    return [by_tile[tile] for tile in sorted(by_tile)]


def _get(row: Mapping[str, object], key: str) -> object:
    if key not in row:
        raise NucloraError(f"tile {row.get('tile', '(unnamed)')} has no {key}")
    return row[key]


def _number(row: Mapping[str, object], metric: str) -> float:
    value = _get(row, metric)
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise NucloraError(f"tile {row['tile']} has {metric} {value}", mend="evaluate that tile again")
    return number


def _fold(row: Mapping[str, object]) -> int:
    value = _get(row, "fold")
    try:
        return int(str(value))
    except ValueError:
        raise NucloraError(f"tile {row['tile']} has fold {value}", mend="folds are whole numbers") from None
