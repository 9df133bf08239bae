"""Dice: how well the foregrounds agree, whatever the instances."""

from __future__ import annotations

from numpy.typing import ArrayLike

from nuclora.metrics.overlap import OverlapTable, as_table


def dice(
    truth: ArrayLike | OverlapTable,
    prediction: ArrayLike | None = None,
    ignore: ArrayLike | None = None,
) -> float:
    """Dice of the foregrounds: twice the shared pixels over the pixels of both.

    Equals `get_dice_1` of HoVer-Net [1]. Two empty maps score 1, a single empty one 0.

    Args:
        truth: Integer labels `(H, W)`, 0 background; or the table of both maps, alone.
        prediction: Integer labels `(H, W)`.
        ignore: Boolean `(H, W)`, see `OverlapTable.from_labels`.

    Returns:
        Dice, from 0 to 1.

    Raises:
        NucloraError: As `OverlapTable.from_labels`.

    References:
        [1] Graham et al. (2019), HoVer-Net, Medical Image Analysis 58, 101563.

    Example:
        >>> dice([[1, 1, 0], [0, 2, 2]], [[3, 3, 3], [0, 0, 0]])
        0.5714285714285714
    """
    table = as_table(truth, prediction, ignore)
    if table.both_empty:
        return 1.0
    shared, total = table.overlaps.sum(), table.true_areas.sum() + table.pred_areas.sum()
    return float(2 * shared / total)
