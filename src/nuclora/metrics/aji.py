"""Aggregated Jaccard index, in its two pairings."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

from nuclora.metrics.overlap import Ints, OverlapTable, as_table

# Added to unions by the published code before it compares pairs; it decides between equal ratios.
_UNION_OFFSET = 1e-6
# Beyond this many cells a block goes to the sparse solver, which is slower on small ones.
_DENSE_CELLS = 4096


def aji(
    truth: ArrayLike | OverlapTable,
    prediction: ArrayLike | None = None,
    ignore: ArrayLike | None = None,
) -> float:
    """Aggregated Jaccard index: shared pixels of all pairs over their unions and all unpaired areas.

    Each true instance takes the prediction of best IoU, even one that another has taken; equal to
    `get_fast_aji` of HoVer-Net [2]. Two empty maps score 1, a single empty one 0.

    Args:
        truth: Integer labels `(H, W)`, 0 background; or the table of both maps, alone.
        prediction: Integer labels `(H, W)`.
        ignore: Boolean `(H, W)`, see `OverlapTable.from_labels`.

    Returns:
        AJI, from 0 to 1.

    Raises:
        NucloraError: As `OverlapTable.from_labels`.

    References:
        [1] Kumar et al. (2017), A dataset and a technique for generalized nuclear segmentation, IEEE TMI 36(7).
        [2] Graham et al. (2019), HoVer-Net, Medical Image Analysis 58, 101563.

    Example:
        Both nuclei take prediction 3, whose area enters both unions.

        >>> aji([[1, 1, 0, 2]], [[3, 3, 3, 3]])
        0.375
    """
    table = as_table(truth, prediction, ignore)
    keys = _keys(table)
    # By true instance, then best pair, then lowest id, the first of which is argmax's choice.
    order = np.lexsort((table.cols, -keys, table.rows))
    _, first = np.unique(table.rows[order], return_index=True)
    return _aggregate(table, order[first])


def aji_plus(
    truth: ArrayLike | OverlapTable,
    prediction: ArrayLike | None = None,
    ignore: ArrayLike | None = None,
) -> float:
    """AJI+: the aggregated Jaccard index with each prediction used at most once.

    The pairing is the one with the largest sum of IoUs; equal to `get_fast_aji_plus` of HoVer-Net [1].
    Two empty maps score 1, a single empty one 0.

    Args:
        truth: Integer labels `(H, W)`, 0 background; or the table of both maps, alone.
        prediction: Integer labels `(H, W)`.
        ignore: Boolean `(H, W)`, see `OverlapTable.from_labels`.

    Returns:
        AJI+, from 0 to 1.

    Raises:
        NucloraError: As `OverlapTable.from_labels`.

    References:
        [1] Graham et al. (2019), HoVer-Net, Medical Image Analysis 58, 101563.

    Example:
        Nucleus 1 takes prediction 3; nucleus 2 is left alone and its area joins the union.

        >>> aji_plus([[1, 1, 0, 2]], [[3, 3, 3, 3]])
        0.4
    """
    table = as_table(truth, prediction, ignore)
    return _aggregate(table, _best_unique_pairs(table))


def _keys(table: OverlapTable) -> NDArray[np.float64]:
    keys: NDArray[np.float64] = table.overlaps / (table.unions + _UNION_OFFSET)
    return keys


def _aggregate(table: OverlapTable, pairs: Ints) -> float:
    """AJI of the chosen `pairs`, indices into the table's pairs."""
    if table.both_empty:
        return 1.0
    lone_true = np.ones(table.true_ids.size, dtype=bool)
    lone_true[table.rows[pairs]] = False
    lone_pred = np.ones(table.pred_ids.size, dtype=bool)
    lone_pred[table.cols[pairs]] = False
    union = table.unions[pairs].sum() + table.true_areas[lone_true].sum() + table.pred_areas[lone_pred].sum()
    return float(table.overlaps[pairs].sum() / union)


def _best_unique_pairs(table: OverlapTable) -> Ints:
    """Indices of the pairs of the assignment with the largest sum of IoUs.

    An assignment over the whole table would need a matrix as large as true times predicted. Pairs of
    different connected components never compete, and most components are a single pair. Which of two
    equal assignments is found does not show: AJI+ depends on the sum of overlaps alone, and the offset
    in the keys parts equal ratios of unequal overlaps.
    """
    rows, cols, keys = table.rows, table.cols, _keys(table)
    true_count = table.true_ids.size
    nodes = true_count + table.pred_ids.size
    graph = coo_array((np.ones(rows.size, dtype=np.int8), (rows, true_count + cols)), shape=(nodes, nodes))
    _, component = connected_components(graph, directed=False)
    component = component[rows]
    order = np.argsort(component, kind="stable")
    _, starts, sizes = np.unique(component[order], return_index=True, return_counts=True)
    chosen = [order[starts[sizes == 1]]]
    for start, size in zip(starts[sizes > 1], sizes[sizes > 1], strict=True):
        block = order[start : start + size]
        chosen.append(block[_assign(rows[block], cols[block], keys[block])])
    return np.concatenate(chosen)


def _assign(rows: Ints, cols: Ints, keys: NDArray[np.float64]) -> Ints:
    """Indices of the pairs of the best assignment within one component."""
    _, rows = np.unique(rows, return_inverse=True)
    _, cols = np.unique(cols, return_inverse=True)
    height, width = int(rows.max()) + 1, int(cols.max()) + 1
    if height == 1 or width == 1:
        return np.array([keys.argmax()])
    if height * width <= _DENSE_CELLS:
        profit = np.zeros((height, width))
        profit[rows, cols] = keys
        index = np.full((height, width), -1)
        index[rows, cols] = np.arange(rows.size)
        picked: Ints = index[linear_sum_assignment(profit, maximize=True)]
        return picked[picked >= 0]
    # A true instance may stay alone: its own dummy column, at a profit of 1 under every real pair's.
    own = np.arange(height)
    profits = coo_array(
        (
            np.concatenate([1.0 + keys, np.ones(height)]),
            (np.concatenate([rows, own]), np.concatenate([cols, width + own])),
        ),
        shape=(height, width + height),
    ).tocsr()
    mates = np.empty(height, dtype=np.int64)
    matched_rows, matched_cols = min_weight_full_bipartite_matching(profits, maximize=True)
    mates[matched_rows] = matched_cols
    return np.flatnonzero(mates[rows] == cols)
