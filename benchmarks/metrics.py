"""Metrics: all of a tile's against HoVer-Net's published form, a slide's worth at once, and how the time grows."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from common import Results, best_of
from label_maps import Labels, discs, noisy_maps, tile_parser, tiles
from nuclora.inference.decode import decode
from nuclora.metrics import classify_errors, score
from nuclora.metrics.overlap import OverlapTable
from nuclora.recipe import DecodeSettings

Masks = list[NDArray[np.uint8]]
Matrix = NDArray[np.float64]


def reference_score(truth: Labels, prediction: Labels) -> dict[str, float]:
    """Dice, AJI, AJI+ and PQ as Graham et al. (2019) published them.

    Written from the definitions, in the form of the published functions: each measure cuts a mask of the whole image
    for each nucleus, and compares whole masks for each pair that shares a pixel.
    """
    return {"dice": _dice(truth, prediction), **_aji(truth, prediction), **_aji_plus(truth, prediction)} | _pq(
        truth, prediction
    )


def _masks(labels: Labels) -> Masks:
    return [np.array(labels == label, np.uint8) for label in np.unique(labels) if label]


def _pairs(true: Masks, predicted: Masks, prediction: Labels) -> tuple[Matrix, Matrix]:
    """Pixels that each true and each predicted nucleus share, and pixels in either; ids are 1..n."""
    shared = np.zeros((len(true), len(predicted)))
    union = np.zeros((len(true), len(predicted)))
    for row, mask in enumerate(true):
        for label in np.unique(prediction[mask > 0]):
            if label:
                other = predicted[label - 1]
                shared[row, label - 1] = (mask * other).sum()
                union[row, label - 1] = (mask + other).sum() - shared[row, label - 1]
    return shared, union


def _dice(truth: Labels, prediction: Labels) -> float:
    true, predicted = (truth > 0).astype(np.uint8), (prediction > 0).astype(np.uint8)
    return float(2 * (true * predicted).sum() / (true.sum() + predicted.sum()))


def _aggregated(
    true: Masks, predicted: Masks, shared: Matrix, union: Matrix, rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> float:
    total = union[rows, columns].sum()
    total += sum(true[row].sum() for row in set(range(len(true))) - set(rows.tolist()))
    total += sum(predicted[column].sum() for column in set(range(len(predicted))) - set(columns.tolist()))
    return float(shared[rows, columns].sum() / total)


def _aji(truth: Labels, prediction: Labels) -> dict[str, float]:
    true, predicted = _masks(truth), _masks(prediction)
    shared, union = _pairs(true, predicted, prediction)
    iou = shared / (union + 1e-6)
    rows = np.flatnonzero(iou.max(axis=1) > 0)
    return {"aji": _aggregated(true, predicted, shared, union, rows, iou.argmax(axis=1)[rows])}


def _aji_plus(truth: Labels, prediction: Labels) -> dict[str, float]:
    true, predicted = _masks(truth), _masks(prediction)
    shared, union = _pairs(true, predicted, prediction)
    iou = shared / (union + 1e-6)
    rows, columns = linear_sum_assignment(-iou)
    real = iou[rows, columns] > 0
    return {"aji_plus": _aggregated(true, predicted, shared, union, rows[real], columns[real])}


def _pq(truth: Labels, prediction: Labels) -> dict[str, float]:
    true, predicted = _masks(truth), _masks(prediction)
    shared, union = _pairs(true, predicted, prediction)
    iou = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    matched = iou[iou > 0.5]
    dq = len(matched) / (0.5 * (len(true) + len(predicted)))
    sq = float(matched.sum()) / (len(matched) + 1e-6)
    return {"dq": dq, "sq": sq, "pq": dq * sq}


def all_measures(truth: Labels, prediction: Labels) -> dict[str, float]:
    """Every measure that nuclora has of a tile, error types included: more than the reference computes."""
    table = OverlapTable.from_labels(truth, prediction)
    return {**score(table), **classify_errors(table).counts}


def same(ours: dict[str, float], reference: dict[str, float]) -> bool:
    """The reference's measures, to 1e-9."""
    return all(abs(ours[name] - value) <= 1e-9 for name, value in reference.items())


def main() -> None:
    given = tile_parser(__doc__ or "", __file__).parse_args()
    results = Results()
    for name, truth in tiles(given.data, count=5):
        prediction = decode(noisy_maps(truth), truth.shape, DecodeSettings(), min_size=10)
        results.compare(
            f"metrics, 512 x 512, {name}, {truth.max()} nuclei",
            functools.partial(all_measures, truth, prediction),
            functools.partial(reference_score, truth, prediction),
            same,
            given.repeats,
        )
    # The reference needs a mask of all pixels for each nucleus, which no memory holds for the maps below.
    for side, count in ((2048, 100), (2048, 1_000), (2048, 10_000), (512, 200), (1024, 800), (4096, 12_800)):
        _add(results, side, count, given.repeats)
    _add(results, 5000, 20_000, given.repeats)
    results.finish(given.out)


def _add(results: Results, side: int, count: int, repeats: int) -> None:
    truth, prediction = discs(side, count, seed=1), discs(side, count, seed=2)
    (ours_s,) = best_of([functools.partial(all_measures, truth, prediction)], repeats)
    results.add(f"metrics, {side} x {side}, {count:,} nuclei", ours_s)


if __name__ == "__main__":
    main()
