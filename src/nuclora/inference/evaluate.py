"""Segment and score labelled tiles, going on from what is already scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nuclora.data.tiles import Sample, Tile
from nuclora.evaluation import Evaluation, Row
from nuclora.inference.predictor import Nuclei, Predictor
from nuclora.inference.protocols import segment
from nuclora.inference.scores import true_ious
from nuclora.metrics import OverlapTable, classify_errors, score
from nuclora.recipe import EvaluateSettings

Progress = Callable[[int, int], None]


def evaluate_tiles(
    predictor: Predictor,
    tiles: Iterable[Tile],
    fold_of: Mapping[str, int],
    protocols: Sequence[str],
    settings: EvaluateSettings,
    evaluations: Mapping[str, Evaluation],
    progress: Progress | None = None,
) -> None:
    """Segment and score every tile under every protocol that has no row for it yet.

    Each image is encoded once for all protocols that prompt. A tile's row does not depend on other tiles, so an
    interrupted evaluation that is taken up again ends as an unbroken one.

    Args:
        predictor: The model.
        tiles: All tiles that are to have rows in the end.
        fold_of: Fold of each tile, by name.
        protocols: Names of protocols.
        settings: Grid, filters, and on how many tiles of a fold `automatic` runs.
        evaluations: Where each protocol's rows and labels are kept, by protocol.
        progress: Called with the tiles done and the tiles to do, before the first and after each; what it raises
            stops the evaluation with everything kept.

    Raises:
        NucloraError: A tile cannot be read, a protocol is unknown, or nothing can be written.
    """
    tiles = list(tiles)
    done = {protocol: {row["tile"] for row in evaluations[protocol].rows} for protocol in protocols}
    wanted = {protocol: {tile.name for tile in tiles} for protocol in protocols}
    if "automatic" in wanted:
        wanted["automatic"] = automatic_subset(tiles, fold_of, settings.automatic_tiles)
    lacking = {tile.name: [name for name in protocols if tile.name in wanted[name] - done[name]] for tile in tiles}
    work = [tile for tile in tiles if lacking[tile.name]]
    for count, tile in enumerate(work):
        if progress and count == 0:
            progress(0, len(work))
        sample = tile.read()
        place = {"tile": tile.name, "group": tile.group, "fold": fold_of[tile.name]}
        encoded = None
        for protocol in lacking[tile.name]:
            if protocol == "automatic" and predictor.dense is not None:
                nuclei = predictor.nuclei(sample.image, settings, mpp=tile.microns_per_pixel)
                labels, outcomes = nuclei.labels, nucleus_outcomes(sample, nuclei)
            else:
                encoded = encoded or predictor.encode(sample.image)
                labels, outcomes = segment(predictor, encoded, sample.labels, protocol, settings), None
            evaluations[protocol].add(place | score_tile(sample, labels), labels, outcomes)
        if progress:
            progress(count + 1, len(work))


def nucleus_outcomes(sample: Sample, nuclei: Nuclei) -> list[Row]:
    """What a model thought of each nucleus that it found, and what came of it; those in vague areas are left out.

    Args:
        sample: The tile.
        nuclei: What was found in it.

    Returns:
        For each nucleus its `label`, `area` in pixels, `score`, and `iou` with the true nucleus that it fits best.
    """
    table = OverlapTable.from_labels(sample.labels, nuclei.labels, sample.ignore)
    found = zip(table.pred_ids.tolist(), table.pred_areas.tolist(), true_ious(table).tolist(), strict=True)
    return [
        {"label": label, "area": area, "score": float(nuclei.scores[label - 1]), "iou": iou}
        for label, area, iou in found
    ]


def score_tile(sample: Sample, labels: NDArray[np.int32]) -> Row:
    """All that a row says of a tile's prediction; ignored nuclei count nowhere.

    Args:
        sample: The tile.
        labels: The prediction, int32 (H, W).

    Returns:
        `nuclei_true` and `nuclei_predicted`, the measures of :func:`nuclora.metrics.score`, and how many nuclei are
        `missed`, `merged` and `split` and how many predictions are `false`
        (:func:`nuclora.metrics.classify_errors`).
    """
    table = OverlapTable.from_labels(sample.labels, labels, sample.ignore)
    errors = classify_errors(table).counts
    return {
        "nuclei_true": len(table.true_ids),
        "nuclei_predicted": len(table.pred_ids),
        **score(table),
        **{kind: errors[kind] for kind in ("missed", "false", "merged", "split")},
    }


def automatic_subset(tiles: Sequence[Tile], fold_of: Mapping[str, int], limit: int | None) -> set[str]:
    """The tiles that `automatic` runs on where the grid is too slow for all.

    Of each fold the first `limit` tiles of this order: the fold's names are sorted and shuffled (seeded with the
    fold's number), then every organ gives its first tile before any gives its second. The choice depends on nothing
    but the names, groups and folds of the tiles.

    Args:
        tiles: All tiles of the folds.
        fold_of: Fold of each tile, by name.
        limit: Tiles a fold; None takes all.

    Returns:
        Names of the chosen tiles.
    """
    by_name = {tile.name: tile for tile in tiles}
    if limit is None:
        return set(by_name)
    chosen: set[str] = set()
    for fold in sorted({fold_of[name] for name in by_name}):
        names = sorted(name for name in by_name if fold_of[name] == fold)
        shuffled = [names[index] for index in np.random.default_rng(fold).permutation(len(names))]
        seen: Counter[str] = Counter()
        rounds = []
        for name in shuffled:
            group = by_name[name].group
            rounds.append(seen[group])
            seen[group] += 1
        order = np.argsort(rounds, kind="stable")
        chosen.update(shuffled[index] for index in order[:limit])
    return chosen
