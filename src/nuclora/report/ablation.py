"""The numbers of an ablation: what each change costs and gains, paired by tile with the reference."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nuclora.evaluation import Row
from nuclora.files import disk_errors, hold_file, remove_torn, write_atomic
from nuclora.metrics.aggregate import paired_difference, summarise
from nuclora.models.parameters import ParameterTable, count_recipe
from nuclora.recipe import Recipe
from nuclora.report.ablation_table import to_csv, to_markdown
from nuclora.report.published import METRICS
from nuclora.run import Run
from nuclora.training.ablation import RESULT, Ablation
from nuclora.training.changes import REFERENCE, AblationRow

Entry = dict[str, Any]
# Seconds to wait for others, each of which may take half a minute: the first time it counts every row's parameters.
_PATIENCE = 600.0


def summarise_ablation(ablation: Ablation) -> dict[str, Any]:
    """What the run folders of an ablation hold so far.

    Args:
        ablation: What to look for; its rows may be finished, begun or not there.

    Returns:
        `list`, `recipe`, `base`, `seed`, `folds` and `rows`. A row has `name`, `why`, `set` (the changed fields) and
        `state`: "lacking", "begun" or "done". All but lacking ones have `parameters` (`trainable` and `total`; empty
        where the folder of a custom base is gone), `steps`, `seconds_per_step` (their median), `memory_mb` (the
        largest), `command` and `commit` of the last session, and `results`: for each protocol with scored tiles
        which ones (`scored`: "test" or "inner"), `tiles` of `of_tiles`, the `mean` of the folds and its 95 % `interval`
        for each measure, `paired_tiles`, and `difference`: for Dice, AJI and PQ the row less the reference over the
        tiles that both have, with the ends of its 95 % interval (:func:`nuclora.metrics.aggregate.paired_difference`;
        empty for the reference, and where it lacks).
    """
    reference = ablation.run_of(ablation.rows[0])
    recipe = ablation.rows[0].recipe
    return {
        "list": ablation.name,
        "recipe": recipe.name,
        "base": recipe.base,
        "seed": recipe.seed,
        "folds": list(ablation.folds),
        "rows": [_row(ablation, row, reference) for row in ablation.rows],
    }


def write_ablation(ablation: Ablation) -> dict[str, Any]:
    """Write ``ablation.json``, ``.csv`` and ``.md``, and return what :func:`summarise_ablation` does.

    Raises:
        NucloraError: Nothing can be written, or other processes have held the table for ten minutes.
    """
    path = ablation.folder / RESULT
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    # Processes may work on other rows of it: the last to write would tell what it saw before the others wrote.
    with hold_file(path, "table", _PATIENCE):
        remove_torn(path.parent)
        summary = summarise_ablation(ablation)
        write_atomic(path, json.dumps(summary, indent=2) + "\n")
        write_atomic(path.with_suffix(".csv"), to_csv(summary))
        write_atomic(path.with_suffix(".md"), to_markdown(summary))
    return summary


def _row(ablation: Ablation, row: AblationRow, reference: Run | None) -> Entry:
    entry: Entry = {"name": row.name, "why": row.why, "set": list(row.set), "state": "lacking"}
    run = ablation.run_of(row)
    if run is None:
        return entry
    steps = [r for fold in ablation.folds for r in run.training_records(fold) if r["kind"] == "step"]
    count = _count(row.recipe, Path(run.info["base_path"]) if row.recipe.base == "custom" else None)
    session: Mapping[str, Any] = run.info["sessions"][-1] if run.info["sessions"] else {}
    results = [
        _result(ablation, row, protocol, scores, _scores(ablation, reference, protocol))
        for protocol in row.recipe.evaluate.protocols
        if (scores := _scores(ablation, run, protocol))
    ]
    return entry | {
        "state": "done" if ablation.is_done(row) else "begun",
        "parameters": {"trainable": count.trainable, "total": count.total} if count else {},
        "steps": len(steps),
        # The first steps of a session are slow, and a mean would show how often it was interrupted.
        "seconds_per_step": statistics.median(record["seconds"] for record in steps) if steps else None,
        "memory_mb": max(record["memory_mb"] for record in steps) if steps else None,
        "command": session.get("command"),
        "commit": session.get("commit"),
        "results": results,
    }


@functools.cache
def _count(recipe: Recipe, folder: Path | None) -> ParameterTable | None:
    """Kept, as the table is written after every row; none of a custom base whose folder is gone."""
    return None if folder and not folder.exists() else count_recipe(recipe, folder)


def _scores(ablation: Ablation, run: Run | None, protocol: str) -> list[Row]:
    """Scored tiles of the folds that the ablation is about; the run may hold others."""
    return [row for fold in ablation.folds for row in run.fine_tuned(fold, protocol).rows] if run else []


def _result(ablation: Ablation, row: AblationRow, protocol: str, scores: list[Row], theirs: list[Row]) -> Entry:
    summary = summarise(scores)
    common = {score["tile"] for score in scores} & {score["tile"] for score in theirs}
    difference = {}
    if common and row.name != REFERENCE:
        ours, others = ([score for score in rows if score["tile"] in common] for rows in (scores, theirs))
        difference = {metric: list(paired_difference(ours, others, metric)) for metric in METRICS}
    return {
        "protocol": protocol,
        "scored": row.recipe.evaluate.tiles,
        "tiles": len(scores),
        "of_tiles": len(ablation.expected_tiles(row, protocol)),
        "mean": summary.mean,
        "interval": summary.interval,
        "paired_tiles": len(common) if difference else 0,
        "difference": difference,
    }
