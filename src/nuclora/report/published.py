"""Numbers that others have published on NuInsSeg, each with the protocol that it was measured under."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

UNSTATED: Final = "unstated"
AUTOMATIC: Final = "automatic"
TRUTH_BOXES: Final = "truth boxes"

NUINSSEG_TILES: Final = 665
"""Tiles of the data set that all these numbers are for."""

PUBLISHED_FOLDS: Final = 5
"""Random folds of single tiles that they are means of."""

METRICS: Final = {"dice": "Dice", "aji": "AJI", "pq": "PQ"}
"""The three measures that everybody reports, and how they are written."""


@dataclass(frozen=True)
class PublishedResult:
    """One published row: means over five random folds of NuInsSeg, from 0 to 1."""

    name: str
    protocol: str
    dice: float
    aji: float
    pq: float
    note: str = ""


STUDY_FOLDS: Final = (
    PublishedResult("fold 1", UNSTATED, 0.8109, 0.5886, 0.5531),
    PublishedResult("fold 2", UNSTATED, 0.8162, 0.5944, 0.5488),
    PublishedResult("fold 3", UNSTATED, 0.8529, 0.6808, 0.6189),
    PublishedResult("fold 4", UNSTATED, 0.8198, 0.6270, 0.5623),
    PublishedResult("fold 5", UNSTATED, 0.8169, 0.6364, 0.5789),
)

STUDY: Final = PublishedResult(
    "The study: SAM ViT-H + LoRA",
    UNSTATED,
    0.8233,
    0.6197,
    0.5724,
    "as the study averages; its five folds give an AJI of 0.6254",
)

FIELD: Final = (
    PublishedResult("Dual-decoder U-Net", AUTOMATIC, 0.794, 0.559, 0.513, "best of the data set's paper"),
    PublishedResult("HoVer-Net", AUTOMATIC, 0.803, 0.575, 0.534),
    PublishedResult("HoVer-NeXt", AUTOMATIC, 0.826, 0.585, 0.542),
    PublishedResult("CellViT-256", AUTOMATIC, 0.819, 0.600, 0.564),
    PublishedResult("MobileSAM + LoRA", TRUTH_BOXES, 0.809, 0.447, 0.467, "a public course project"),
)

PUBLISHED: Final = (STUDY, *FIELD)
