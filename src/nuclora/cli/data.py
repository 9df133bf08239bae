"""``nuclora data``: fetch, check, convert and synthesise labelled data sets."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from nuclora.cli.options import AsJson, Data, DataFormat

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from nuclora.data.check import CheckReport, GroupStatistics

app = typer.Typer(help="Fetch, check, convert and synthesise labelled data sets.", no_args_is_help=True)

BAD_INPUT = 2


@app.command()
def fetch(
    name: Annotated[Literal["nuinsseg"], typer.Argument(help="Name of the data set.")],
    dest: Annotated[Path, typer.Argument(help="New folder for it.")],
) -> None:
    """Download a public data set; run it again to go on after a break."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from nuclora.data.fetch import fetch_nuinsseg

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = _stderr()
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        fetch_nuinsseg(dest, _phases(bar))
    typer.echo(f"{name} is in {dest}; look it over with: nuclora data check {shlex.quote(str(dest))}")


@app.command()
def check(
    data: Data,
    data_format: DataFormat = None,
    max_faults: Annotated[int, typer.Option(min=1, help="Print at most so many faults; --json has all.")] = 20,
    json_: AsJson = False,
) -> None:
    """Open every file and say, file by file, what is wrong; exit code 2 if it would spoil training."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from nuclora.data.check import check_data

    columns = (TextColumn("checking tiles"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = _stderr()
    # A bar that is gone in the end leaves an empty line where there is no terminal.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        report = check_data(data, data_format, lambda done, total: bar.update(task, completed=done, total=total))
    if json_:
        typer.echo(json.dumps(asdict(report)))
    else:
        _print_report(report, max_faults)
    if any(fault.spoils for fault in report.faults):
        raise typer.Exit(BAD_INPUT)


@app.command()
def convert(
    data: Data,
    dest: Annotated[Path, typer.Argument(help="New folder for the data set.", show_default=False)],
    to: Annotated[
        Literal["nuinsseg", "folder"], typer.Option(help="NuInsSeg's layout, or images/ with labels/.")
    ] = "folder",
    data_format: DataFormat = None,
) -> None:
    """Write labelled tiles of any format in one of ours; run it again to go on after a break."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from nuclora.data import open_tiles
    from nuclora.data.convert import convert_data
    from nuclora.data.tiles import counted

    tiles = open_tiles(data, data_format)
    columns = (TextColumn("converting tiles"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = _stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(tiles))
        written = convert_data(tiles, dest, to, lambda done, total: bar.update(task, completed=done, total=total))
    kept = f" ({len(tiles) - written:,} were there already)" if written < len(tiles) else ""
    typer.echo(f"{counted(len(tiles), 'tile')} of {tiles.format} in {dest}{kept}")
    if scales := sorted({tile.microns_per_pixel for tile in tiles if tile.microns_per_pixel is not None}):
        named = ", ".join(f"{scale:g}" for scale in scales)
        typer.echo(f"microns per pixel: {named}; the new layout has no place for it, so note it down")


@app.command()
def synth(
    dest: Annotated[Path, typer.Argument(help="New folder for the data set, in NuInsSeg's layout.")],
    tiles: Annotated[int, typer.Option(min=1, help="Number of tiles.")] = 24,
    size: Annotated[int, typer.Option(min=64, max=4096, help="Side of a tile in pixels.")] = 256,
    organs: Annotated[int, typer.Option(min=1, max=5, help="Number of organs, each with its own look.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed; equal seeds make equal tiles.")] = 0,
) -> None:
    """Write synthetic H&E tiles with exact labels."""
    from nuclora.data.synthetic import write_dataset
    from nuclora.data.tiles import counted

    write_dataset(dest, tiles=tiles, size=size, organs=organs, seed=seed)
    typer.echo(f"{counted(tiles, 'tile')} of {counted(organs, 'organ')} in {dest}")


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _phases(bar: Progress) -> Callable[[str, int, int | None], None]:
    """A callback that gives each phase its own bar when it begins."""
    tasks: dict[str, TaskID] = {}

    def update(phase: str, done: int, total: int | None) -> None:
        if phase not in tasks:
            tasks[phase] = bar.add_task(phase, total=total)
        bar.update(tasks[phase], completed=done, total=total)

    return update


def _print_report(report: CheckReport, max_faults: int) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from nuclora.data.tiles import counted
    from nuclora.errors import NucloraError

    console = Console()
    grid = Table(
        "organ",
        "tiles",
        "nuclei",
        "size, px",
        "area, px²\np5 / p50 / p95",
        "diameter, px\np5 / p50 / p95",
        title=f"{escape(report.root)} ({report.format})",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for column in grid.columns[1:]:
        column.justify, column.no_wrap = "right", True
    grid.columns[0].overflow, grid.columns[0].min_width = "fold", 8
    for row in report.groups:
        grid.add_row(*_cells(row))
    if report.total.tiles:
        grid.add_section()
        grid.add_row(*_cells(report.total, counted(len(report.groups), "organ")), style="bold")
    console.print(grid)
    for note in report.notes:
        named = ", ".join(note.tiles[:3]) + (", ..." if len(note.tiles) > 3 else "")
        console.print(f"[cyan]note[/]   {escape(note.text)}: {escape(named)}", highlight=False, soft_wrap=True)
    # What is not named must not be what spoils.
    ordered = sorted(report.faults, key=lambda fault: not fault.spoils)
    for fault in ordered[:max_faults]:
        kind = "[red]fault[/] " if fault.spoils else "[yellow]meant?[/]"
        line = NucloraError(fault.reason, path=fault.path, mend=fault.mend)
        console.print(f"{kind} {escape(str(line))}", highlight=False, soft_wrap=True)
    if hidden := ordered[max_faults:]:
        kind = "[red]fault[/] " if hidden[0].spoils else "[yellow]meant?[/]"
        console.print(f"{kind} and {len(hidden):,} more: see --max-faults or --json", highlight=False)
    spoiling = sum(fault.spoils for fault in report.faults)
    if spoiling:
        console.print(f"[bold red]{counted(spoiling, 'fault')} would spoil training[/]", highlight=False)
    elif report.faults:
        console.print("[bold green]fit for training[/], if what is named above is meant", highlight=False)
    else:
        console.print("[bold green]no faults: fit for training[/]", highlight=False)


def _cells(row: GroupStatistics, name: str | None = None) -> tuple[str, ...]:
    from rich.markup import escape

    height, width, _ = row.sizes[0]
    others = f" and {len(row.sizes) - 1} more" if len(row.sizes) > 1 else ""
    spread = [" / ".join(f"{value:.0f}" for value in values) if values else "-" for values in (row.area, row.diameter)]
    return escape(name or row.group), str(row.tiles), f"{row.nuclei:,}", f"{height} x {width}{others}", *spread
