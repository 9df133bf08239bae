"""Measures of instance segmentation, all read from one contingency table a tile."""

from __future__ import annotations

from nuclora.metrics.aggregate import Summary, paired_difference, summarise
from nuclora.metrics.aji import aji, aji_plus
from nuclora.metrics.dice import dice
from nuclora.metrics.errors import ErrorTypes, PerNucleus, classify_errors, per_nucleus
from nuclora.metrics.overlap import OverlapTable
from nuclora.metrics.pq import PanopticQuality, count_error, f1, mean_segmentation_accuracy, panoptic_quality
from nuclora.metrics.score import METRICS, score

__all__ = [
    "METRICS",
    "ErrorTypes",
    "OverlapTable",
    "PanopticQuality",
    "PerNucleus",
    "Summary",
    "aji",
    "aji_plus",
    "classify_errors",
    "count_error",
    "dice",
    "f1",
    "mean_segmentation_accuracy",
    "paired_difference",
    "panoptic_quality",
    "per_nucleus",
    "score",
    "summarise",
]
