"""Panoptic quality and the detection measures that count matched instances."""

from __future__ import annotations

from typing import NamedTuple

from numpy.typing import ArrayLike

from nuclora.metrics.overlap import OverlapTable, as_table

# In the published code's denominator of SQ: a perfect tile of n nuclei scores n / (n + 1e-6).
_SQ_OFFSET = 1e-6


class PanopticQuality(NamedTuple):
    """Detection quality, segmentation quality and their product, each from 0 to 1."""

    dq: float
    sq: float
    pq: float


def panoptic_quality(
    truth: ArrayLike | OverlapTable,
    prediction: ArrayLike | None = None,
    ignore: ArrayLike | None = None,
) -> PanopticQuality:
    """Panoptic quality over instances that match with an IoU over 0.5.

    With TP matched pairs, FP predictions and FN true instances left over:
    `dq = TP / (TP + FP/2 + FN/2)`, `sq = sum of matched IoUs / (TP + 1e-6)`, `pq = dq * sq`. Equal to
    `get_fast_pq` of HoVer-Net [2] at `match_iou=0.5`, its 1e-6 included. Two empty maps score 1 in all three, a
    single empty one 0.

    Args:
        truth: Integer labels `(H, W)`, 0 background; or the table of both maps, alone.
        prediction: Integer labels `(H, W)`.
        ignore: Boolean `(H, W)`, see `OverlapTable.from_labels`.

    Returns:
        `dq`, `sq` and `pq`.

    Raises:
        NucloraError: As `OverlapTable.from_labels`.

    References:
        [1] Kirillov et al. (2019), Panoptic segmentation, CVPR.
        [2] Graham et al. (2019), HoVer-Net, Medical Image Analysis 58, 101563.

    Example:
        >>> quality = panoptic_quality([[1, 1, 1, 0, 2]], [[4, 4, 0, 0, 0]])
        >>> round(quality.dq, 3), round(quality.sq, 3), round(quality.pq, 3)
        (0.667, 0.667, 0.444)
    """
    table = as_table(truth, prediction, ignore)
    if table.both_empty:
        return PanopticQuality(1.0, 1.0, 1.0)
    matched = int(table.matches.sum())
    dq = matched / (0.5 * (table.true_ids.size + table.pred_ids.size))
    sq = float(table.ious[table.matches].sum()) / (matched + _SQ_OFFSET)
    return PanopticQuality(dq, sq, dq * sq)


def f1(
    truth: ArrayLike | OverlapTable,
    prediction: ArrayLike | None = None,
    ignore: ArrayLike | None = None,
) -> float:
    """F1 of detection at an IoU over 0.5: `2 TP / (2 TP + FP + FN)`, the same number as PQ's `dq`.

    Args:
        truth: Integer labels `(H, W)`, 0 background; or the table of both maps, alone.
        prediction: Integer labels `(H, W)`.
        ignore: Boolean `(H, W)`, see `OverlapTable.from_labels`.

    Returns:
        F1, from 0 to 1; two empty maps score 1, a single empty one 0.

    Raises:
        NucloraError: As `OverlapTable.from_labels`.

    Example:
        >>> f1([[1, 1, 0, 2]], [[5, 5, 0, 0]])
        0.6666666666666666
    """
    return panoptic_quality(as_table(truth, prediction, ignore)).dq


def mean_segmentation_accuracy(
    truth: ArrayLike | OverlapTable,
    prediction: ArrayLike | None = None,
    ignore: ArrayLike | None = None,
) -> float:
    """Mean of `TP / (TP + FP + FN)` over the IoU thresholds 0.5, 0.55, ... 0.95.

    The score of the 2018 Data Science Bowl [1]; a pair matches where its IoU is over the threshold.

    Args:
        truth: Integer labels `(H, W)`, 0 background; or the table of both maps, alone.
        prediction: Integer labels `(H, W)`.
        ignore: Boolean `(H, W)`, see `OverlapTable.from_labels`.

    Returns:
        The mean, from 0 to 1; two empty maps score 1, a single empty one 0.

    Raises:
        NucloraError: As `OverlapTable.from_labels`.

    References:
        [1] Caicedo et al. (2019), Nucleus segmentation across imaging experiments: the 2018 Data Science
            Bowl, Nature Methods 16, 1247-1253.

    Example:
        The pair has an IoU of 0.8, over the six thresholds from 0.5 to 0.75.

        >>> mean_segmentation_accuracy([[1, 1, 1, 1, 0]], [[1, 1, 1, 1, 1]])
        0.6
    """
    table = as_table(truth, prediction, ignore)
    if table.both_empty:
        return 1.0
    instances = table.true_ids.size + table.pred_ids.size
    # Thresholds are twentieths, compared in whole numbers so that an IoU of exactly 0.55 never matches.
    hits = [int((20 * table.overlaps > twentieths * table.unions).sum()) for twentieths in range(10, 20)]
    return sum(matched / (instances - matched) for matched in hits) / len(hits)


def count_error(
    truth: ArrayLike | OverlapTable,
    prediction: ArrayLike | None = None,
    ignore: ArrayLike | None = None,
) -> float:
    """Predicted less true number of instances: positive where there are too many.

    Args:
        truth: Integer labels `(H, W)`, 0 background; or the table of both maps, alone.
        prediction: Integer labels `(H, W)`.
        ignore: Boolean `(H, W)`, see `OverlapTable.from_labels`.

    Returns:
        The difference in instances, a whole number.

    Raises:
        NucloraError: As `OverlapTable.from_labels`.

    Example:
        >>> count_error([[1, 0, 2]], [[3, 0, 0]])
        -1.0
    """
    table = as_table(truth, prediction, ignore)
    return float(table.pred_ids.size - table.true_ids.size)
