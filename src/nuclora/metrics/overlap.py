"""The contingency table of two label maps: counted once, read by every metric."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array

from nuclora.errors import NucloraError

Ints = NDArray[np.int64]
Ids = NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class OverlapTable:
    """Areas of all instances of two label maps, and the overlap of each pair that shares a pixel.

    Instances are numbered from 0 in ascending order of their ids; `T` true instances, `P` predicted
    ones, `E` overlapping pairs in row-major order. Its size grows with the number of instances, never
    with its square.

    Attributes:
        true_ids: Ids of the true instances as they stood in the label map, `(T,)`.
        pred_ids: Ids of the predicted instances, `(P,)`.
        true_areas: Pixels of each true instance, int64 `(T,)`.
        pred_areas: Pixels of each predicted instance, int64 `(P,)`.
        rows: Number of the true instance of each pair, int64 `(E,)`.
        cols: Number of the predicted instance of each pair, int64 `(E,)`.
        overlaps: Pixels that the pair shares, at least 1, int64 `(E,)`.
    """

    true_ids: Ids
    pred_ids: Ids
    true_areas: Ints
    pred_areas: Ints
    rows: Ints
    cols: Ints
    overlaps: Ints

    @classmethod
    def from_labels(cls, truth: ArrayLike, prediction: ArrayLike, ignore: ArrayLike | None = None) -> OverlapTable:
        """Count the table of two label maps.

        Ignored areas are where nobody knows the truth, so nothing there may count for or against a
        prediction:

        1. Ignored pixels leave truth and prediction alike.
        2. A true instance with more than half of its area ignored leaves whole, and the rest of it is
           ignored too. Which nuclei are asked for thus never depends on the prediction.
        3. A predicted instance with more than half of its area ignored leaves whole, since it is no
           false positive, unless what is left of it matches (IoU > 0.5) a remaining true instance.

        Args:
            truth: Integer labels `(H, W)` of any integer dtype, 0 background; gaps are allowed.
            prediction: Integer labels of the same shape.
            ignore: Boolean `(H, W)`, True where pixels do not count.

        Returns:
            The table of the instances that count.

        Raises:
            NucloraError: If the shapes differ or are not `(H, W)`, if labels are not integers or are
                negative, or if the ignore mask is not boolean.

        Example:
            >>> table = OverlapTable.from_labels([[1, 1, 0], [7, 7, 0]], [[2, 2, 2], [0, 5, 5]])
            >>> table.true_ids.tolist(), table.pred_ids.tolist()
            ([1, 7], [2, 5])
            >>> table.overlaps.tolist(), table.ious.round(3).tolist()
            ([2, 1], [0.667, 0.333])
        """
        true = _labels(truth, "truth")
        pred = _labels(prediction, "prediction")
        if true.shape != pred.shape:
            raise NucloraError(
                f"truth has shape {true.shape} and prediction {pred.shape}",
                mend="give both on the same pixel grid",
            )
        hidden = None if ignore is None else _mask(ignore, true.shape)
        starts, lengths = _runs(true, pred, hidden)
        true_ids, rows = _compact(true.ravel()[starts], "truth")
        pred_ids, cols = _compact(pred.ravel()[starts], "prediction")
        if hidden is None:
            return _count(true_ids, pred_ids, rows, cols, lengths)
        whole = _count(true_ids, pred_ids, rows, cols, lengths)
        seen = ~hidden.ravel()[starts]
        visible = _count(true_ids, pred_ids, rows[seen], cols[seen], lengths[seen])
        return _without_ignored(visible, whole)

    @cached_property
    def unions(self) -> Ints:
        """Pixels in either instance of each pair, int64 `(E,)`."""
        unions: Ints = self.true_areas[self.rows] + self.pred_areas[self.cols] - self.overlaps
        return unions

    @cached_property
    def ious(self) -> NDArray[np.float64]:
        """Intersection over union of each pair, `(E,)`."""
        ious: NDArray[np.float64] = self.overlaps / self.unions
        return ious

    @cached_property
    def matches(self) -> NDArray[np.bool_]:
        """Which pairs match, that is have an IoU over 0.5, `(E,)`; no instance is in two of them."""
        matches: NDArray[np.bool_] = 2 * self.overlaps > self.unions
        return matches

    @property
    def both_empty(self) -> bool:
        """Whether there is neither a true nor a predicted instance."""
        return not (self.true_ids.size or self.pred_ids.size)


def as_table(truth: ArrayLike | OverlapTable, prediction: ArrayLike | None, ignore: ArrayLike | None) -> OverlapTable:
    """Take a table as it is, or count that of two label maps.

    Raises:
        NucloraError: If label maps come without a prediction, a table comes with one, or
            `OverlapTable.from_labels` refuses them.
    """
    if isinstance(truth, OverlapTable):
        if prediction is not None or ignore is not None:
            raise NucloraError("an overlap table already holds the prediction", mend="give the table alone")
        return truth
    if prediction is None:
        raise NucloraError("no prediction to compare the truth with", mend="give truth and prediction")
    return OverlapTable.from_labels(truth, prediction, ignore)


def _labels(labels: ArrayLike, role: str) -> NDArray[np.integer]:
    array = np.asarray(labels)
    if array.ndim != 2:
        raise NucloraError(f"{role} has shape {array.shape}", mend="give one label map (H, W)")
    if not np.issubdtype(array.dtype, np.integer):
        mend = "label the instances first, for example with scipy.ndimage.label"
        raise NucloraError(f"{role} has dtype {array.dtype}, where ids must be integers", mend=mend)
    return array


def _mask(ignore: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.asarray(ignore)
    if mask.dtype != np.bool_:
        raise NucloraError(f"the ignore mask has dtype {mask.dtype}", mend="give a boolean one (mask > 0)")
    if mask.shape != shape:
        mend = "give both on the same pixel grid"
        raise NucloraError(f"the ignore mask has shape {mask.shape} and truth {shape}", mend=mend)
    return mask


def _runs(true: Ids, pred: Ids, hidden: NDArray[np.bool_] | None) -> tuple[Ints, Ints]:
    """Starts and lengths of the runs of pixels, in reading order, over which nothing changes.

    Label maps have few runs for their pixels, so all that follows handles a small part of the image.
    """
    size = true.size
    changed = np.zeros(max(size - 1, 0), dtype=bool)
    for array in (true, pred) if hidden is None else (true, pred, hidden):
        flat = array.ravel()
        changed |= flat[1:] != flat[:-1]
    starts = np.concatenate([np.zeros(min(size, 1), dtype=np.int64), np.flatnonzero(changed) + 1])
    return starts, np.diff(starts, append=size)


def _compact(values: Ids, role: str) -> tuple[Ids, Ints]:
    """The positive ids among `values`, and for each value its number from 1 in them, 0 for background."""
    if values.size == 0:
        return values, np.zeros(0, dtype=np.int64)
    if values.min() < 0:
        raise NucloraError(f"{role} has negative ids", mend="number the instances from 1, background 0")
    # Ids beyond a table as long as the values themselves are rare (hashes, slide-wide ids): sort those.
    if int(values.max()) <= 2 * values.size + 65536:
        present = np.zeros(int(values.max()) + 1, dtype=bool)
        present[values] = True
        present[0] = False
        return np.flatnonzero(present).astype(values.dtype), np.cumsum(present)[values] * (values > 0)
    ids = np.unique(values)
    ids = ids[ids > 0]
    return ids, np.searchsorted(ids, values, side="right")


def _count(true_ids: Ids, pred_ids: Ids, rows: Ints, cols: Ints, lengths: Ints) -> OverlapTable:
    """The table of runs with numbers `rows`, `cols` (0 background) of `lengths` pixels."""
    true_count, pred_count = true_ids.size, pred_ids.size
    both = (rows > 0) & (cols > 0)
    pairs = coo_array((lengths[both], (rows[both] - 1, cols[both] - 1)), shape=(true_count, pred_count)).tocsr()
    pairs.sum_duplicates()
    return OverlapTable(
        true_ids=true_ids,
        pred_ids=pred_ids,
        # Weighted counts come as float64, exact up to 2**53 pixels.
        true_areas=np.bincount(rows, lengths, true_count + 1)[1:].astype(np.int64),
        pred_areas=np.bincount(cols, lengths, pred_count + 1)[1:].astype(np.int64),
        rows=np.repeat(np.arange(true_count, dtype=np.int64), np.diff(pairs.indptr)),
        cols=pairs.indices.astype(np.int64),
        overlaps=pairs.data.astype(np.int64),
    )


def _without_ignored(visible: OverlapTable, whole: OverlapTable) -> OverlapTable:
    """Apply rules 2 and 3 of `from_labels` to the tables of the visible and of all pixels."""
    keep_true = 2 * visible.true_areas >= whole.true_areas
    gone = np.bincount(visible.cols, visible.overlaps * ~keep_true[visible.rows], visible.pred_ids.size).astype(
        np.int64
    )
    visible = _select(visible, keep_true, visible.pred_areas - gone, np.ones(gone.size, dtype=bool))
    keep_pred = 2 * visible.pred_areas >= whole.pred_areas
    keep_pred[visible.cols[visible.matches]] = True
    return _select(visible, np.ones(visible.true_ids.size, dtype=bool), visible.pred_areas, keep_pred)


def _select(
    table: OverlapTable, keep_true: NDArray[np.bool_], pred_areas: Ints, keep_pred: NDArray[np.bool_]
) -> OverlapTable:
    """The table of the kept instances, whose predicted ones now have `pred_areas`."""
    pairs = keep_true[table.rows] & keep_pred[table.cols]
    return OverlapTable(
        true_ids=table.true_ids[keep_true],
        pred_ids=table.pred_ids[keep_pred],
        true_areas=table.true_areas[keep_true],
        pred_areas=pred_areas[keep_pred],
        rows=(np.cumsum(keep_true) - 1)[table.rows[pairs]],
        cols=(np.cumsum(keep_pred) - 1)[table.cols[pairs]],
        overlaps=table.overlaps[pairs],
    )
