"""All measures of one tile, from one table."""

from __future__ import annotations

from typing import Final

from numpy.typing import ArrayLike

from nuclora.metrics.aji import aji, aji_plus
from nuclora.metrics.dice import dice
from nuclora.metrics.overlap import OverlapTable, as_table
from nuclora.metrics.pq import count_error, f1, mean_segmentation_accuracy, panoptic_quality

METRICS: Final = ("dice", "aji", "aji_plus", "dq", "sq", "pq", "f1", "msa", "count_error")


def score(
    truth: ArrayLike | OverlapTable,
    prediction: ArrayLike | None = None,
    ignore: ArrayLike | None = None,
) -> dict[str, float]:
    """Score the predicted instances of one tile.

    Dice, AJI, AJI+, DQ, SQ and PQ equal HoVer-Net's published code. Where neither map has an instance,
    every measure is 1 and `count_error` 0; where only one has, every measure is 0 and `count_error` the
    plain difference.

    Args:
        truth: Integer labels `(H, W)`, 0 background, as they come: gaps, any integer dtype, instances
            of several components; or the table of both maps, alone.
        prediction: Integer labels `(H, W)`.
        ignore: Boolean `(H, W)`, True where nothing counts, see `OverlapTable.from_labels`.

    Returns:
        The measures by name, those in `METRICS`, each explained by the function of its name
        (`dq`, `sq`, `pq`: `panoptic_quality`; `msa`: `mean_segmentation_accuracy`).

    Raises:
        NucloraError: As `OverlapTable.from_labels`.

    Example:
        >>> measures = score([[1, 1, 1, 0, 2]], [[4, 4, 0, 0, 0]])
        >>> {name: round(value, 3) for name, value in measures.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'dice': 0.667, 'aji': 0.5, 'aji_plus': 0.5, 'dq': 0.667, 'sq': 0.667, 'pq': 0.444,
         'f1': 0.667, 'msa': 0.2, 'count_error': -1.0}
    """
    table = as_table(truth, prediction, ignore)
    quality = panoptic_quality(table)
    return {
        "dice": dice(table),
        "aji": aji(table),
        "aji_plus": aji_plus(table),
        "dq": quality.dq,
        "sq": quality.sq,
        "pq": quality.pq,
        "f1": f1(table),
        "msa": mean_segmentation_accuracy(table),
        "count_error": count_error(table),
    }
