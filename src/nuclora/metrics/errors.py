"""What went wrong with each nucleus: missed, merged or split; and which predictions are false."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nuclora.metrics.overlap import Ids, Ints, OverlapTable, as_table

# One piece in ten: smaller specks inside a nucleus are false predictions, not a split.
_PIECE_FRACTION = 10


@dataclass(frozen=True)
class ErrorTypes:
    """Ids by what happened, ascending.

    Each true nucleus is in one of `matched`, `missed`, `merged`, `split`, and each prediction in one of
    `partners`, `false`, `merging`, `pieces`.

    Attributes:
        matched: True nuclei found, one for one.
        partners: Predictions that match those.
        missed: True nuclei without a prediction that outlines them well enough.
        false: Predictions that are no nucleus's match, merge none and are a piece of none.
        merged: True nuclei that share one prediction.
        split: True nuclei broken over several predictions.
        merging: Predictions that merged nuclei share.
        pieces: Predictions that split nuclei are broken over.
    """

    matched: tuple[int, ...]
    partners: tuple[int, ...]
    missed: tuple[int, ...]
    false: tuple[int, ...]
    merged: tuple[int, ...]
    split: tuple[int, ...]
    merging: tuple[int, ...]
    pieces: tuple[int, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of true nuclei matched, missed, merged and split, and of false predictions."""
        return {
            "matched": len(self.matched),
            "missed": len(self.missed),
            "false": len(self.false),
            "merged": len(self.merged),
            "split": len(self.split),
        }


@dataclass(frozen=True, eq=False)
class PerNucleus:
    """One value for each of `T` true nuclei, by ascending id.

    Attributes:
        id: Id in the truth, `(T,)`.
        area: Pixels that count, int64 `(T,)`.
        best_iou: Highest IoU with any prediction, 0 without one, float64 `(T,)`.
        matched: Whether that is over 0.5, `(T,)`.
    """

    id: Ids
    area: Ints
    best_iou: NDArray[np.float64]
    matched: NDArray[np.bool_]


def classify_errors(
    truth: ArrayLike | OverlapTable,
    prediction: ArrayLike | None = None,
    ignore: ArrayLike | None = None,
) -> ErrorTypes:
    """Say of each true nucleus what happened to it, and which predictions are false.

    In this order, the first that holds:

    1. merged: the prediction that covers more than half of it covers more than half of another true
       nucleus too (both are merged, however unequal).
    2. split: two or more predictions are its pieces, and together cover more than half of it. A piece lies
       with more than half of its own area in the nucleus and covers at least a tenth of it.
    3. matched: a prediction has an IoU over 0.5 with it.
    4. missed: none of these, so also where the outline is too poor.

    A merged or split nucleus can still have an IoU over 0.5 with one of its predictions and so be a true
    positive of PQ: `matched` counts at most those.

    Args:
        truth: Integer labels `(H, W)`, 0 background; or the table of both maps, alone.
        prediction: Integer labels `(H, W)`.
        ignore: Boolean `(H, W)`, see `OverlapTable.from_labels`; what leaves there is in no list.

    Returns:
        Ids by what happened.

    Raises:
        NucloraError: As `OverlapTable.from_labels`.

    Example:
        >>> truth = [[1, 1, 2, 2, 0, 3, 3, 3, 3, 0, 4, 0, 5]]
        >>> prediction = [[6, 6, 6, 6, 0, 7, 7, 8, 8, 0, 9, 1, 0]]
        >>> errors = classify_errors(truth, prediction)
        >>> errors.merged, errors.split, errors.missed, errors.false
        ((1, 2), (3,), (5,), (1,))
        >>> errors.counts
        {'matched': 1, 'missed': 1, 'false': 1, 'merged': 2, 'split': 1}
    """
    table = as_table(truth, prediction, ignore)
    rows, cols, overlaps = table.rows, table.cols, table.overlaps
    true_count, pred_count = table.true_ids.size, table.pred_ids.size

    covering = 2 * overlaps > table.true_areas[rows]
    merging = np.bincount(cols[covering], minlength=pred_count) > 1
    merged = _marked(true_count, rows[covering & merging[cols]])

    piece = (2 * overlaps > table.pred_areas[cols]) & (_PIECE_FRACTION * overlaps >= table.true_areas[rows])
    covered = np.bincount(rows, overlaps * piece, true_count)
    several = np.bincount(rows[piece], minlength=true_count) > 1
    split = several & (2 * covered > table.true_areas) & ~merged

    matched = _marked(true_count, rows[table.matches]) & ~merged & ~split
    pieces = _marked(pred_count, cols[piece & split[rows]]) & ~merging
    partners = _marked(pred_count, cols[table.matches & matched[rows]])
    return ErrorTypes(
        matched=_ids(table.true_ids, matched),
        partners=_ids(table.pred_ids, partners),
        missed=_ids(table.true_ids, ~(merged | split | matched)),
        false=_ids(table.pred_ids, ~(merging | pieces | partners)),
        merged=_ids(table.true_ids, merged),
        split=_ids(table.true_ids, split),
        merging=_ids(table.pred_ids, merging),
        pieces=_ids(table.pred_ids, pieces),
    )


def per_nucleus(
    truth: ArrayLike | OverlapTable,
    prediction: ArrayLike | None = None,
    ignore: ArrayLike | None = None,
) -> PerNucleus:
    """Area and best IoU of each true nucleus.

    Args:
        truth: Integer labels `(H, W)`, 0 background; or the table of both maps, alone.
        prediction: Integer labels `(H, W)`.
        ignore: Boolean `(H, W)`, see `OverlapTable.from_labels`; nuclei that leave there are not listed.

    Returns:
        Arrays with one value for each true nucleus.

    Raises:
        NucloraError: As `OverlapTable.from_labels`.

    Example:
        >>> nuclei = per_nucleus([[1, 1, 1, 0, 4]], [[2, 2, 0, 0, 0]])
        >>> nuclei.id.tolist(), nuclei.area.tolist(), nuclei.matched.tolist()
        ([1, 4], [3, 1], [True, False])
        >>> nuclei.best_iou.round(3).tolist()
        [0.667, 0.0]
    """
    table = as_table(truth, prediction, ignore)
    best = np.zeros(table.true_ids.size)
    np.maximum.at(best, table.rows, table.ious)
    matched = _marked(table.true_ids.size, table.rows[table.matches])
    return PerNucleus(id=table.true_ids, area=table.true_areas, best_iou=best, matched=matched)


def _marked(count: int, indices: Ints) -> NDArray[np.bool_]:
    marks = np.zeros(count, dtype=bool)
    marks[indices] = True
    return marks


def _ids(ids: Ids, chosen: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(ids[chosen].tolist())
