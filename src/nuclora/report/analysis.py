"""What the report needs from the label maps themselves, gathered in one pass over the tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nuclora.data.tiles import TileSet
from nuclora.evaluation import Row
from nuclora.metrics.errors import classify_errors, per_nucleus
from nuclora.report.overlays import Example
from nuclora.run import Run

Floats = NDArray[np.float64]

_REFERENCE_AREA = 512 * 512


@dataclass(frozen=True)
class NucleusAnalysis:
    """Density and size beside success, under one protocol.

    Attributes:
        densities: Nuclei per 512 x 512 pixels of each tile, (N,).
        aji: AJI of the same tiles, (N,).
        areas: Pixels of each scored true nucleus of all tiles, (M,).
        found: Whether a prediction matches it (IoU > 0.5), (M,).
        typical_tile: Name of the tile with the median number of nuclei.
    """

    densities: Floats
    aji: Floats
    areas: Floats
    found: NDArray[np.bool_]
    typical_tile: str


def analyse_nuclei(run: Run, tiles: TileSet, protocol: str, rows: Sequence[Row]) -> NucleusAnalysis:
    """Compare fine-tuned predictions with the truth, nucleus by nucleus.

    Args:
        run: The run.
        tiles: Its labelled tiles.
        protocol: The protocol whose predictions are read.
        rows: The fine-tuned evaluation's rows under it, at least one.

    Raises:
        NucloraError: A tile of the run or its label map is missing or damaged.
    """
    densities, areas, found = [], [], []
    for row in rows:
        tile = tiles[row["tile"]]
        # Not the whole tile: decoding the images would be half of the work.
        truth = tile.read_truth()
        labels, ignore = truth.labels, truth.ignore
        nuclei = per_nucleus(labels, run.fine_tuned(row["fold"], protocol).labels(tile.name, labels.shape), ignore)
        scored = labels.size if ignore is None else max(1, np.count_nonzero(~ignore))
        densities.append(row["nuclei_true"] * _REFERENCE_AREA / scored)
        areas.append(nuclei.area)
        found.append(nuclei.matched)
    by_count = sorted(rows, key=lambda row: (row["nuclei_true"], row["tile"]))
    return NucleusAnalysis(
        densities=np.array(densities),
        aji=np.array([row["aji"] for row in rows]),
        areas=np.concatenate(areas).astype(np.float64),
        found=np.concatenate(found),
        typical_tile=by_count[len(by_count) // 2]["tile"],
    )


def pick_examples(run: Run, tiles: TileSet, protocol: str, rows: Sequence[Row]) -> list[Example]:
    """The best, the median and the worst tile of one fold by AJI; fewer of a fold with fewer tiles.

    Args:
        run: The run.
        tiles: Its labelled tiles.
        protocol: The protocol whose fine-tuned predictions are shown.
        rows: The fold's rows under it, at least one.
    """
    return [_example(run, tiles, protocol, row, rank) for rank, row in ranked(rows)]


def ranked(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """The rows of a fold's best, median and worst tile with nuclei by AJI, each with its rank; fewer of fewer tiles."""
    # A tile without nuclei shows nothing of what was found.
    order = sorted([row for row in rows if row["nuclei_true"]] or rows, key=lambda row: (-row["aji"], row["tile"]))
    ranks = {len(order) // 2: "median", len(order) - 1: "worst", 0: "best"}
    return [(ranks[place], order[place]) for place in sorted(ranks)]


def _example(run: Run, tiles: TileSet, protocol: str, row: Row, rank: str) -> Example:
    sample = tiles[row["tile"]].read()
    prediction = run.fine_tuned(row["fold"], protocol).labels(row["tile"], sample.labels.shape)
    errors = classify_errors(sample.labels, prediction, sample.ignore)
    return Example(rank, row["tile"], sample, prediction, errors, row)
