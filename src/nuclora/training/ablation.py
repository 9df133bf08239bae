"""An ablation: a recipe, and the same recipe with one thing changed at a time, each a run of its own.

The unit of work is one row (:func:`run_row`): it needs nothing of the other rows, and leaves nothing but its run
folder. What is done is read off the run folders.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nuclora.data.folds import FoldTable, make_folds, scored_tiles
from nuclora.data.tiles import TileSet
from nuclora.errors import NucloraError
from nuclora.inference.evaluate import automatic_subset
from nuclora.models.checkpoints import load_base
from nuclora.recipe import Recipe
from nuclora.run import Run
from nuclora.training.changes import REFERENCE, AblationRow, ChangeList, resolve_rows, told_of_row
from nuclora.training.crossval import CrossValidation
from nuclora.training.monitor import Monitor
from nuclora.training.plan import check_recipe

RESULT = "ablation.json"
"""File by which the folder of an ablation is known."""


@dataclass(frozen=True)
class Ablation:
    """What an ablation is to do and where; all of it checked.

    Attributes:
        name: Name of the list of changes.
        folder: Holds a run folder for each row.
        rows: The reference, then the changes.
        pending: Names of the rows that are asked for and not finished.
        tiles: Labelled tiles.
        fold_table: The folds, the same for every row.
        folds: The folds that are trained and tested.
        weights: File of the base's weights; by default it is looked for.
    """

    name: str
    folder: Path
    rows: tuple[AblationRow, ...]
    pending: tuple[str, ...]
    tiles: TileSet
    fold_table: FoldTable
    folds: tuple[int, ...]
    weights: Path | None

    def run_folder(self, row: AblationRow) -> Path:
        """Where the row's run is."""
        return self.folder / row.name

    def work_of(self, row: AblationRow) -> CrossValidation:
        """What the row is to be trained and tested by."""
        out = self.run_folder(row)
        return CrossValidation(self.tiles, row.recipe, out, self.fold_table, self.folds, self.weights, zero_shot=False)

    def run_of(self, row: AblationRow) -> Run | None:
        """The row's run; none where it has not begun."""
        folder = self.run_folder(row)
        return Run(folder) if (folder / "run.json").exists() else None

    def expected_tiles(self, row: AblationRow, protocol: str) -> set[str]:
        """Names of the tiles that the row is scored on in the end."""
        fold_of = {tile: fold for fold in self.folds for tile in scored_tiles(self.fold_table, fold, row.recipe)}
        if protocol != "automatic":
            return set(fold_of)
        tiles = [self.tiles[name] for name in fold_of]
        return automatic_subset(tiles, fold_of, row.recipe.evaluate.automatic_tiles)

    def is_done(self, row: AblationRow) -> bool:
        """Whether the row is trained on all the folds, and scored on all its tiles."""
        run = self.run_of(row)
        if run is None or not all(run.adapter_folder(fold).exists() for fold in self.folds):
            return False
        return all(
            {score["tile"] for fold in self.folds for score in run.fine_tuned(fold, protocol).rows}
            >= self.expected_tiles(row, protocol)
            for protocol in row.recipe.evaluate.protocols
        )


def plan_ablation(
    tiles: TileSet,
    changes: ChangeList,
    out: str | Path,
    *,
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
    fold_table: FoldTable | None = None,
    folds: Sequence[int] = (1,),
    only: Sequence[str] | None = None,
    weights: str | Path | None = None,
) -> Ablation:
    """Resolve all rows and check them against base, folds and what `out` holds; nothing is begun.

    Args:
        tiles: Labelled tiles.
        changes: The list of changes.
        out: Folder of the ablation.
        recipe: The reference recipe in place of the list's own.
        overrides: ``field=value`` each, for all rows.
        fold_table: Which tile is in which fold; by default 5 random folds with the reference's seed.
        folds: Folds to train and test.
        only: Names of the rows to work on; all by default.
        weights: File of the base's weights; by default it is looked for.

    Raises:
        NucloraError: Bad input, two equal rows, or `out` was made from something else.
    """
    rows = resolve_rows(changes, recipe, overrides)
    chosen = _choose(rows, only)
    table = fold_table or make_folds(tiles, 5, rows[0].recipe.seed)
    table.check_against(tiles)
    for fold in folds:
        table.test(fold)
    file = Path(weights) if weights else None
    draft = Ablation(changes.name, Path(out), rows, (), tiles, table, tuple(sorted(set(folds))), file)
    _check_folder(draft)
    # Before anything is read of a finished row: its folder may hold another recipe's run.
    begun = [row for row in rows if draft.run_of(row)]
    sha256 = tiles.digest() if begun else None
    for row in begun:
        _check_run(draft, row, sha256, None)
    pending = [row for row in chosen if not draft.is_done(row)]
    for name in sorted({row.recipe.base for row in pending}):
        base = load_base(name, file)
        for row in pending:
            if row.recipe.base == name:
                processes = int(os.environ.get("WORLD_SIZE", "1"))
                with told_of_row(row.name):
                    check_recipe(row.recipe, table, draft.folds, base, processes)
        for row in begun:
            if row.recipe.base == name:
                _check_run(draft, row, sha256, {"name": name, "sha256": base.sha256, "path": str(base.path)})
    _require_listed(draft)
    return replace(draft, pending=tuple(row.name for row in pending))


def run_row(work: CrossValidation, monitor: Monitor | None = None) -> Run:
    """Train and test one row, going on from what its run folder holds.

    Raises:
        NucloraError: As :func:`~nuclora.training.crossval.cross_validate`.
        Stopped: A stop was asked for; everything is saved.
    """
    # What the row before has left would count as this one's memory.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return work.run(monitor)


def run_ablation(
    ablation: Ablation,
    *,
    before: Callable[[AblationRow], Monitor | None] = lambda row: None,
    after: Callable[[AblationRow], object] = lambda row: None,
) -> dict[str, NucloraError]:
    """Work off the pending rows; one that fails does not keep the others from their turn.

    Args:
        ablation: What :func:`plan_ablation` returned.
        before: Called before each row; returns what watches it.
        after: Called after each row, also after one that failed or was stopped.

    Returns:
        The errors by row.

    Raises:
        Stopped: A stop was asked for; everything is saved.
    """
    failed: dict[str, NucloraError] = {}
    for row in ablation.rows:
        if row.name not in ablation.pending:
            continue
        monitor = before(row) or Monitor()
        try:
            run_row(ablation.work_of(row), monitor)
        except NucloraError as error:
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                # The other processes are in the middle of the row, and would wait for this one for ever.
                raise
            # Not the error itself: it holds the row's networks, and the next rows need the memory.
            failed[row.name] = NucloraError(error.reason, path=error.path, mend=error.mend)
        finally:
            monitor.close()
            after(row)
    return failed


def _choose(rows: Sequence[AblationRow], only: Sequence[str] | None) -> list[AblationRow]:
    """The rows asked for, in the list's order, if no two of them and the reference are equal."""
    names = [row.name for row in rows]
    unknown = [name for name in only or () if name not in names]
    if unknown:
        raise NucloraError(f"no row {unknown[0]!r}", mend=f"choose from {', '.join(names)}")
    chosen = [row for row in rows if only is None or row.name in only]
    seen: dict[Recipe, str] = {}
    for row in [rows[0], *(row for row in chosen if row.name != REFERENCE)]:
        first = seen.setdefault(row.recipe.model_copy(update={"name": ""}), row.name)
        if first != row.name:
            others = ",".join(other.name for other in chosen if other.name != row.name)
            mend = f"leave one out: --only {others}" if others else "leave out the --set that makes them so"
            raise NucloraError(f"rows {first} and {row.name} are the same recipe", mend=mend)
    return chosen


def _require_listed(ablation: Ablation) -> None:
    """Refuse a folder with rows that the list has not: the table would silently lose them."""
    listed = {ablation.run_folder(row) for row in ablation.rows}
    for note in sorted(ablation.folder.glob("*/run.json")):
        if note.parent not in listed:
            raise NucloraError(
                "a row that the list of changes has not",
                path=note.parent,
                mend="put it back into the list, delete this folder, or name a new one with -o",
            )


def _check_folder(ablation: Ablation) -> None:
    """Refuse a folder that holds something else than an ablation."""
    folder, mend = ablation.folder, "name a new folder with -o"
    if (folder / "run.json").exists():
        raise NucloraError("holds a run, not an ablation", path=folder, mend=mend)
    if folder.exists() and not folder.is_dir():
        raise NucloraError("not a folder", path=folder, mend=mend)
    # Rows may be begun before the first table is written; their runs are looked at next. What begins with the table's
    # name was left by a write that was killed.
    rows = {ablation.run_folder(row) for row in ablation.rows}
    own = folder.exists() and all(
        path.name.startswith(f".{RESULT}") or (path in rows and (path / "run.json").exists())
        for path in folder.iterdir()
    )
    if folder.exists() and not own and not (folder / RESULT).exists():
        raise NucloraError("neither empty nor an ablation", path=folder, mend=mend)


def _check_run(ablation: Ablation, row: AblationRow, sha256: str | None, base: Mapping[str, str] | None) -> None:
    """Refuse a row's run that another recipe, fold table, base or other tiles made.

    Args:
        ablation: The ablation.
        row: Its row, which is begun.
        sha256: Of the tiles.
        base: The base; without one it is not compared.
    """
    run = ablation.run_of(row)
    assert run is not None
    there = {**run.info["base"], "path": run.info["base_path"]}
    data = {**run.info["data"], "root": str(ablation.tiles.root), "sha256": sha256}
    Run.start(run.folder, recipe=row.recipe, folds=ablation.fold_table, base=base or there, data=data)
