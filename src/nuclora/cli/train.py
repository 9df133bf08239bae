"""`nuclora train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nuclora.cli.options import AsJson, BaseName, Data, DataFormat, RecipeName, SetFields, Weights, overrides


def train(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder; an interrupted run in it is gone on with.")],
    fold: Annotated[
        int | None,
        typer.Option(min=1, help="Hold this fold out and evaluate on it.", show_default="train on all tiles"),
    ] = None,
    recipe: RecipeName = "paper",
    base: BaseName = None,
    weights: Weights = None,
    set_fields: SetFields = None,
    k: Annotated[int, typer.Option("-k", min=2, help="Number of folds, and no more than there are tiles.")] = 5,
    fold_table: Annotated[
        Path | None, typer.Option("--fold-table", help="CSV of `nuclora folds` in place of -k.")
    ] = None,
    evaluate: Annotated[
        bool, typer.Option(help="Evaluate a fold's adapter on its test tiles; `nuclora cv` does it later.")
    ] = True,
    tensorboard: Annotated[bool, typer.Option(help="Also write TensorBoard scalars (extra: track).")] = False,
    data_format: DataFormat = None,
    json_: AsJson = False,
) -> None:
    """Train one fold, or one adapter on all tiles."""
    from nuclora.data import open_tiles
    from nuclora.data.folds import ALL_TILES, FoldTable, make_folds
    from nuclora.recipe import load_recipe

    loaded = load_recipe(recipe, overrides(base, set_fields))
    tiles = open_tiles(data, data_format)
    table = FoldTable.read(fold_table) if fold_table else make_folds(tiles, min(k, len(tiles)), loaded.seed)

    # After what reads the data: these load torch, and bad input is told without waiting for it.
    from nuclora.cli.runs import cross_validate_and_print
    from nuclora.training.crossval import CrossValidation

    folds = [ALL_TILES if fold is None else fold]
    work = CrossValidation(tiles, loaded, out, table, folds, weights, zero_shot=False, evaluate=evaluate)
    cross_validate_and_print(work, tensorboard=tensorboard, as_json=json_)
