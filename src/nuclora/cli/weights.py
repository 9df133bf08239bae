"""`nuclora weights`: the published weights of the bases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nuclora.cli.options import AsJson

app = typer.Typer(help="List and fetch the weights of the bases.", no_args_is_help=True)


@app.command("list")
def list_(json_: AsJson = False) -> None:
    """Show each base, and where its weights are."""
    import json

    from nuclora.errors import NucloraError
    from nuclora.models.bases import BASES
    from nuclora.models.checkpoints import find_weights

    found: dict[str, Path | None] = {}
    published = {name: base for name, base in BASES.items() if base.file}
    for name in published:
        try:
            found[name] = find_weights(name)
        except NucloraError:
            found[name] = None
    if json_:
        rows = [
            {
                "name": name,
                "encoder": base.encoder,
                "input_size": base.input_size,
                "bytes": base.bytes,
                "sha256": base.sha256,
                "source": base.url or base.package,
                "path": str(found[name]) if found[name] else None,
            }
            for name, base in published.items()
        ]
        typer.echo(json.dumps(rows))
        return

    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    view = Table(box=box.SIMPLE_HEAD)
    view.add_column("base")
    view.add_column("encoder")
    view.add_column("input", justify="right")
    view.add_column("MB", justify="right")
    view.add_column("weights", overflow="fold")
    for name, base in published.items():
        here = found[name]
        where = escape(str(here)) if here else "[dim]-[/]"
        view.add_row(name, base.encoder, f"{base.input_size}", f"{base.bytes / 1e6:,.0f}", where)
    console = Console()
    console.print(view)
    if not all(found.values()):
        console.print("Get what is missing with [bold]nuclora weights fetch BASE[/].")


@app.command("fetch")
def fetch(name: Annotated[str, typer.Argument(help="A base of `nuclora weights list`.")]) -> None:
    """Download the weights of a base and verify them."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from nuclora.models import checkpoints

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        path = checkpoints.fetch(name, lambda had, size: bar.update(task, completed=had, total=size))
    typer.echo(path)
