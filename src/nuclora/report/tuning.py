"""Tuned thresholds as a table."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from nuclora.data.folds import ALL_TILES


def print_thresholds(console: Console, thresholds: Mapping[int, Mapping[str, float]]) -> None:
    """Print a row of thresholds for each fold.

    Args:
        console: Where to.
        thresholds: By fold; each fold's by name.
    """
    table = Table(title="thresholds, by inner validation", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("fold", justify="right")
    # Cards may have been tuned by different versions.
    names = list(dict.fromkeys(name for values in thresholds.values() for name in values))
    for name in names:
        table.add_column(name, justify="right")
    for fold, values in thresholds.items():
        table.add_row(
            "all tiles" if fold == ALL_TILES else str(fold),
            *(f"{values[name]:g}" if name in values else "–" for name in names),
        )
    console.print(table)
