"""How sure a model is of each nucleus: a score that stands for the IoU to be expected."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nuclora.inference.decode import decode, fill_holes, upsample
from nuclora.metrics import OverlapTable
from nuclora.recipe import DecodeSettings

Floats = NDArray[np.float32]
Calibration = Sequence[tuple[float, float]]

# Tile pixels by which the views' ideas of a nucleus's middle may differ before a pixel's membership is in doubt.
_DOUBT = 4.0
# Tile pixels around a nucleus in which foreground that nobody claims counts against it.
_RING = 3
_KNOTS = 20


def find_nuclei(
    maps: Floats, disagreement: Floats, shape: tuple[int, int], settings: DecodeSettings, min_size: int
) -> tuple[NDArray[np.int32], Floats]:
    """Decode maps, and keep the nuclei that the views agree on well enough.

    Args:
        maps: As in :func:`nuclora.inference.decode.decode`.
        disagreement: As in :func:`agreement`.
        shape: Height and width of the image, in pixels.
        settings: Thresholds; a nucleus whose agreement is below `settings.agreement` is left out.
        min_size: Smallest nucleus in pixels.

    Returns:
        Labels, int32 (H, W), 1..n in reading order, and the agreement of each, float32 (n,).

    Raises:
        NucloraError: As :func:`nuclora.inference.decode.decode`.
    """
    labels = decode(maps, shape, settings, min_size)
    scores = agreement(labels, maps[0], disagreement)
    kept = scores >= settings.agreement
    numbers = np.append(0, np.where(kept, np.cumsum(kept), 0)).astype(np.int32)
    # What is left out, here or for its size, may have lain inside another nucleus.
    return fill_holes(numbers[labels]), scores[kept]


def agreement(labels: NDArray[np.int32], foreground: Floats, disagreement: Floats) -> Floats:
    """Soft IoU of each nucleus with what the averaged views say of its place.

    The expected overlap, pixel by pixel the foreground's probability times how well the views agree on the nucleus's
    middle, over the nucleus's area and the foreground left unclaimed around it. A ranking; :func:`calibrate` makes
    expected IoUs of it.

    Args:
        labels: int32 (H, W), 1..n.
        foreground: Probability, float32 (ceil(H / 2), ceil(W / 2)).
        disagreement: Mean distance in tile pixels of the views' votes from their mean, of the same shape.

    Returns:
        float32 (n,), 0..1.
    """
    from skimage.segmentation import expand_labels

    count = int(labels.max(initial=0)) + 1
    shape = labels.shape[0], labels.shape[1]
    owned = labels > 0
    # Planes of a slide's block are large: what is needed of one is taken before the next is made.
    doubt = upsample(disagreement[None], shape)[0][owned]
    inside = upsample(foreground[None], shape)[0]
    membership = inside[owned] * np.exp(-0.5 * (doubt / _DOUBT) ** 2)
    overlap = np.bincount(labels[owned], membership, count)
    area = np.bincount(labels.ravel(), minlength=count)
    ring = np.where(labels == 0, expand_labels(labels, _RING), 0)
    unclaimed = np.bincount(ring.ravel(), inside.ravel(), count)
    score: Floats = (overlap[1:] / np.maximum(area[1:] + unclaimed[1:], 1)).astype(np.float32)
    return score


def true_ious(table: OverlapTable) -> NDArray[np.float64]:
    """The best IoU of each predicted nucleus with a true one, 0 where it meets none.

    Args:
        table: Of truth and prediction.

    Returns:
        (n,), in the order of `table.pred_ids`.
    """
    best = np.zeros(table.pred_ids.size)
    np.maximum.at(best, table.cols, table.ious)
    return best


def calibrate(scores: NDArray[np.floating], ious: NDArray[np.floating]) -> list[tuple[float, float]]:
    """Learn what IoU to expect at a score: isotonic regression over bins of equally many nuclei.

    Zadrozny & Elkan, "Transforming classifier scores into accurate multiclass probability estimates" (KDD 2002).

    Args:
        scores: Of :func:`agreement`, (n,).
        ious: The IoU that each turned out to have, (n,).

    Returns:
        At most 20 points (score, expected IoU), both rising; none without nuclei.
    """
    from sklearn.isotonic import isotonic_regression

    if not len(scores):
        return []
    which = equal_bins(scores, _KNOTS)
    bins = [np.flatnonzero(which == number) for number in range(which.max() + 1)]
    at = [float(np.mean(scores[part])) for part in bins]
    expected = isotonic_regression(
        [float(np.mean(ious[part])) for part in bins], sample_weight=[float(len(part)) for part in bins]
    )
    return [(round(score, 5), round(float(iou), 5)) for score, iou in zip(at, expected, strict=True)]


def equal_bins(scores: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Deal scores into bins of about equally many, ascending.

    Equal scores stay in one bin: the order of the tiles must not deal them out.

    Args:
        scores: (n,), n > 0.
        count: How many bins at most; fewer where many scores are equal.

    Returns:
        The bin of each score, from 0, (n,); every bin has some.
    """
    ascending = np.sort(scores)
    edges = np.unique([part[0] for part in np.array_split(ascending, min(count, len(scores)))])
    bins: NDArray[np.int64] = np.searchsorted(edges, scores, side="right") - 1
    return bins


def expected_ious(scores: Floats, calibration: Calibration) -> Floats:
    """The expected IoU at each score; the scores themselves without a calibration."""
    if not calibration:
        return scores
    at, expected = zip(*calibration, strict=True)
    found: Floats = np.interp(scores, at, expected).astype(np.float32)
    return found
