"""`nuclora cv`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from nuclora.cli.options import (
    AsJson,
    BaseName,
    Data,
    DataFormat,
    EngineName,
    RecipeName,
    SetFields,
    Weights,
    WorkerCpus,
    WorkersPerGpu,
    overrides,
    ray_workers,
)


def cv(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder; an interrupted run in it is gone on with.")],
    recipe: RecipeName = "paper",
    base: BaseName = None,
    weights: Weights = None,
    set_fields: SetFields = None,
    folds: Annotated[str | None, typer.Option(help="Only these folds, as in 4,5.", show_default="all")] = None,
    k: Annotated[int, typer.Option("-k", min=2, help="Number of folds.")] = 5,
    by: Annotated[
        Literal["tile", "organ", "published"],
        typer.Option(help="Deal out single tiles, or whole organs, or take the folds that the data set comes with."),
    ] = "tile",
    fold_table: Annotated[
        Path | None, typer.Option("--fold-table", help="CSV of `nuclora folds` in place of -k and --by.")
    ] = None,
    zero_shot: Annotated[bool, typer.Option(help="Also evaluate the base as it came.")] = True,
    tensorboard: Annotated[bool, typer.Option(help="Also write TensorBoard scalars (extra: track).")] = False,
    data_format: DataFormat = None,
    engine: EngineName = "local",
    worker_cpus: WorkerCpus = None,
    workers_per_gpu: WorkersPerGpu = None,
    json_: AsJson = False,
) -> None:
    """Cross-validate: train and evaluate every fold; goes on from what the run holds."""
    from nuclora.data import open_tiles
    from nuclora.data.folds import ALL_TILES, FoldTable, make_folds
    from nuclora.errors import NucloraError
    from nuclora.recipe import load_recipe

    workers = ray_workers(engine, worker_cpus, workers_per_gpu)
    loaded = load_recipe(recipe, overrides(base, set_fields))
    tiles = open_tiles(data, data_format)
    table = FoldTable.read(fold_table) if fold_table else make_folds(tiles, k, loaded.seed, by)

    # After what reads the data: these load torch, and bad input is told without waiting for it.
    from nuclora.cli.runs import cross_validate_and_print, parse_folds
    from nuclora.training.crossval import CrossValidation

    chosen = parse_folds(folds)
    if chosen and ALL_TILES in chosen:
        raise NucloraError(f"--folds {folds}: folds count from 1", mend="`nuclora train` trains on all tiles")
    cross_validate_and_print(
        CrossValidation(tiles, loaded, out, table, chosen, weights, zero_shot),
        tensorboard=tensorboard,
        as_json=json_,
        workers=workers,
    )
