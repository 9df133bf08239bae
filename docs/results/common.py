"""What the scripts beside this one share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from nuclora.data import open_tiles
from nuclora.data.folds import inner_split
from nuclora.data.tiles import TileSet
from nuclora.errors import NucloraError
from nuclora.run import Run
from nuclora.training.plan import thin


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
