"""``nuclora folds``: write the fold table of a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nuclora.cli.options import AsJson, Data, DataFormat

if TYPE_CHECKING:
    from nuclora.data.folds import FoldTable


def folds(
    data: Data,
    k: Annotated[int, typer.Option("-k", help="Number of folds.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the shuffle: 42 is the study's, 19 the data set's.")] = 42,
    by: Annotated[
        Literal["tile", "organ", "published"],
        typer.Option(
            help="Deal out tiles at random, or whole organs (leave-organ-out; the seed has no effect), or take the"
            " folds that the data set comes with (PanNuke, Lizard)."
        ),
    ] = "tile",
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV file to write.")] = Path("folds.csv"),
    data_format: DataFormat = None,
    json_: AsJson = False,
) -> None:
    """Deal the tiles of a data set into cross-validation folds, and write the table as CSV."""
    from nuclora.data import open_tiles
    from nuclora.data.folds import make_folds
    from nuclora.errors import NucloraError

    table = make_folds(open_tiles(data, data_format), k, seed, by)
    if out.is_file() and out.read_bytes() != table.to_csv().encode():
        # It may be one that was written by hand.
        raise NucloraError("there is another fold table", path=out, mend="name another file with -o, or remove it")
    table.write(out)
    if json_:
        summary = [
            {
                "fold": fold,
                "test": len(table.test(fold)),
                "train": len(table.train(fold)),
                "groups": _groups(table, fold),
            }
            for fold in table.folds
        ]
        typer.echo(json.dumps({"path": str(out), "sha256": table.sha256, "by": by, "seed": seed, "folds": summary}))
    else:
        _print(table, out)


def _groups(table: FoldTable, fold: int) -> list[str]:
    return sorted({row.group for row in table.rows if row.fold == fold})


def _print(table: FoldTable, output: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    grid = Table("fold", "test tiles", "training tiles", "test organs", title=f"{len(table.rows)} tiles")
    for column in grid.columns[:3]:
        column.justify = "right"
    for fold in table.folds:
        groups = _groups(table, fold)
        named = ", ".join(groups) if len(groups) <= 8 else f"{len(groups)} organs"
        grid.add_row(str(fold), str(len(table.test(fold))), str(len(table.train(fold))), escape(named))
    console.print(grid)
    console.print(f"sha256 {table.sha256}", soft_wrap=True, highlight=False)
    console.print(f"written to {output}", soft_wrap=True, highlight=False, markup=False)
