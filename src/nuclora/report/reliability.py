"""Whether a nucleus's score is the IoU to be expected of it, and what is left where low scores are dropped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuclora.evaluation import Evaluation, Row
from nuclora.inference.scores import equal_bins

Floats = NDArray[np.float64]

_BINS = 10
_CUTS = tuple(round(0.05 * step, 2) for step in range(20))
_RIGHT = 0.5
"""A prediction is right over this IoU: no other can be then, so it is a match of PQ."""


def calibration(evaluated: Iterable[tuple[Evaluation, Row]]) -> dict[str, Any]:
    """Compare the score of each predicted nucleus with the IoU that it turned out to have.

    Args:
        evaluated: The scored tiles, each with the evaluation that it is from. Tiles whose nuclei have no scores are
            passed over.

    Returns:
        Nothing where no nucleus has a score; or else `nuclei` and `tiles`, their numbers; `error`, the expected
        calibration error: the mean over bins, weighted by their nuclei, of the distance between mean score and mean
        IoU, of each fold's adapter by itself, and the mean of these, weighted by their nuclei too; and of all folds'
        nuclei `bins`, see :func:`bins_of`, and `cuts`, see :func:`cuts_of`.
    """
    nuclei: list[dict[str, float]] = []
    of_fold: defaultdict[int, list[dict[str, float]]] = defaultdict(list)
    tiles = true_nuclei = 0
    for evaluation, row in evaluated:
        found = evaluation.nuclei(row["tile"])
        if len(found) == row["nuclei_predicted"]:
            nuclei += found
            of_fold[row["fold"]] += found
            tiles += 1
            true_nuclei += int(row["nuclei_true"])
    if not nuclei:
        return {}
    scores, ious = _columns(nuclei)
    return {
        # Pooled, what one adapter promises too much would make up for what another promises too little.
        "error": sum(_distance(*_columns(found)) for found in of_fold.values() if found) / len(nuclei),
        "nuclei": len(nuclei),
        "tiles": tiles,
        "bins": bins_of(scores, ious),
        "cuts": cuts_of(scores, ious, true_nuclei),
    }


def _columns(nuclei: Sequence[Mapping[str, float]]) -> tuple[Floats, Floats]:
    return np.array([nucleus["score"] for nucleus in nuclei]), np.array([nucleus["iou"] for nucleus in nuclei])


def _distance(scores: Floats, ious: Floats) -> float:
    """Sum over nuclei of how far their bin's mean score is from its mean IoU."""
    return float(sum(part["nuclei"] * abs(part["score"] - part["iou"]) for part in bins_of(scores, ious)))


def bins_of(scores: Floats, ious: Floats) -> list[dict[str, Any]]:
    """Ten bins of about equally many nuclei by score; fewer where many nuclei have the same score.

    Args:
        scores: Of each nucleus, (N,), N > 0.
        ious: Of each nucleus, (N,).

    Returns:
        Ascending: the mean `score` and mean `iou` of a bin's `nuclei`, and the `quartiles` of their IoU.
    """
    which = equal_bins(scores, _BINS)
    return [
        {
            "score": float(scores[which == part].mean()),
            "iou": float(ious[which == part].mean()),
            "nuclei": int((which == part).sum()),
            "quartiles": np.quantile(ious[which == part], (0.25, 0.75)).tolist(),
        }
        for part in range(which.max() + 1)
    ]


def cuts_of(scores: Floats, ious: Floats, true_nuclei: int) -> list[dict[str, Any]]:
    """What is left where only nuclei with a score of at least so much are kept.

    Args:
        scores: Of each nucleus, (N,), N > 0.
        ious: Of each nucleus, (N,).
        true_nuclei: How many nuclei there are in truth.

    Returns:
        For each `score` from 0 up that leaves any: the `nuclei` kept and their share `kept` of all; the `precision`,
        the share of them with an IoU over .5; the `recall`, how many these are per true nucleus; and `f1`, the
        harmonic mean of these two.
    """
    cuts = []
    for score in _CUTS:
        left = ious[scores >= score]
        if not len(left):
            break
        right = int((left > _RIGHT).sum())
        cuts.append(
            {
                "score": score,
                "nuclei": len(left),
                "kept": len(left) / len(scores),
                "precision": right / len(left),
                "recall": right / max(1, true_nuclei),
                "f1": 2 * right / (len(left) + true_nuclei),
            }
        )
    return cuts
