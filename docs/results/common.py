"""What the scripts beside this one share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nuclora.data import open_tiles
from nuclora.data.folds import ALL_TILES, inner_split, make_folds
from nuclora.data.tiles import TileSet
from nuclora.errors import NucloraError
from nuclora.evaluation import Row
from nuclora.metrics.aggregate import paired_difference, summarise
from nuclora.models.adapter import read_card, read_recipe
from nuclora.run import Run
from nuclora.training.plan import thin

MEASURES = ("dice", "aji", "pq")


def told(main: Callable[[], None]) -> None:
    """Run a script; what is wrong with its arguments or files is told in a line."""
    try:
        main()
    except (NucloraError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def inner_tiles(run: Run, fold: int, count: int | None = None) -> TileSet:
    """The inner validation tiles of a fold, or so many of them, evenly spread."""
    data = open_tiles(Path(run.info["data"]["root"]), run.info["data"]["format"])
    return data.subset(thin(inner_split(run.folds, fold, seed=run.recipe.seed)[1], count))


def inner_tiles_of_all(root: Path, adapter: Path, count: int | None = None) -> TileSet:
    """The tiles that an adapter of all tiles did not train on and was tuned with, or so many of them."""
    recipe = read_recipe(adapter, read_card(adapter))
    data = open_tiles(root)
    folds = make_folds(data, 5, recipe.seed)
    return data.subset(thin(inner_split(folds, ALL_TILES, seed=recipe.seed)[1], count))


def against(rows: Sequence[Row], reference: Sequence[Row]) -> dict[str, Any]:
    """The means of some tiles' measures, and their difference to others' of the same tiles."""
    mean = summarise(rows, metrics=MEASURES).mean
    return {"mean": mean, "difference": {name: paired_difference(rows, reference, name) for name in MEASURES}}
