"""What `predict` shows: progress, a table of images or JSON, and what could not be read."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nuclora.allocator import keep_freed_memory
from nuclora.cli.progress import LineMonitor, ProgressMonitor
from nuclora.inference.engine import Engine, LocalEngine
from nuclora.inference.images import Outcome
from nuclora.inference.outputs import Row
from nuclora.scale.cluster import WorkerSize, connect
from nuclora.scale.prediction import RayEngine
from nuclora.training.interrupt import Interrupt

_ROWS_SHOWN = 20


def predict_and_print(work: Callable[..., Outcome], *, as_json: bool, workers: WorkerSize | None) -> None:
    """Predict with the progress shown, then print what came of it.

    Args:
        work: :func:`nuclora.inference.images.predict_files`, which lacks only progress and engine.
        as_json: Print JSON in place of a table.
        workers: What each worker of a Ray cluster is given; none works in this process.

    Raises:
        NucloraError: As there.
        Stopped: A stop was asked for; what is done is saved.
        Exit: Some images could not be read.
    """
    outcome = _predict(work, workers)
    console = Console()
    if as_json:
        failures = [
            {"image": str(error.path), "reason": error.reason, "mend": error.mend} for error in outcome.failures
        ]
        images = [{**asdict(row), "kept": row.image in outcome.kept} for row in outcome.rows]
        told = {"out": str(outcome.out), "images": images, "failures": failures, "notes": outcome.notes}
        typer.echo(json.dumps(told, indent=2))
    elif outcome.rows:
        _print_table(console, outcome)
    for error in outcome.failures:
        typer.secho(f"nuclora: {error}", fg="red", err=True)
    if outcome.failures:
        raise typer.Exit(2)


def _predict(work: Callable[..., Outcome], workers: WorkerSize | None) -> Outcome:
    monitor = ProgressMonitor() if workers is None else LineMonitor()
    keep_freed_memory()

    def progress(done: int, total: int) -> None:
        monitor.predicted(done, total)
        interrupt.check()

    def block_progress(name: str, done: int, total: int) -> None:
        monitor.predicted_block(name, done, total)
        interrupt.check()

    with contextlib.ExitStack() as stack:
        stack.callback(monitor.close)
        cluster = stack.enter_context(connect(workers)) if workers is not None else None
        # After Ray, which has a handler of its own.
        interrupt = stack.enter_context(Interrupt())
        engine: Engine = LocalEngine(interrupt.check)
        if cluster:
            engine = stack.enter_context(contextlib.closing(RayEngine(cluster, interrupt.check)))
        return work(progress=progress, block_progress=block_progress, engine=engine)


def _print_table(console: Console, outcome: Outcome) -> None:
    """A row an image, named by what tells it from the others: its path below the folder that holds them all."""
    rows = outcome.rows
    paths = [Path(row.image).absolute() for row in rows]
    # Windows has no folder that holds two drives.
    folder = os.path.commonpath([path.parent for path in paths]) if len({path.drive for path in paths}) == 1 else None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=len(rows) > 1)
    table.add_column("image", "all", overflow="fold")
    table.add_column("pixels", justify="right", no_wrap=True)
    table.add_column("nuclei", f"{sum(row.nuclei for row in rows):,}", justify="right", no_wrap=True)
    table.add_column("mean area", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    for row, path in zip(rows[:_ROWS_SHOWN], paths, strict=False):
        area = "" if row.mean_area_px is None else f"{row.mean_area_px:,.0f} px"
        seconds = "kept" if row.image in outcome.kept else f"{row.seconds:.1f}"
        name = path.relative_to(folder) if folder else path
        table.add_row(Text(str(name)), f"{row.width} x {row.height}", f"{row.nuclei:,}", area, seconds)
    console.print(table)
    if len(rows) > _ROWS_SHOWN:
        console.print(f"and {len(rows) - _ROWS_SHOWN} more in the summary", highlight=False)
    if outcome.kept:
        console.print(
            "kept: made by the same adapter and settings before; --overwrite makes them anew", highlight=False
        )
    for row in rows[:_ROWS_SHOWN]:
        if row.tissue_mm2 is not None:
            console.print(_slide_line(row), soft_wrap=True, highlight=False, markup=False)
    for note in outcome.notes:
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    console.print(f"outputs and summary.csv: {outcome.out}", soft_wrap=True, highlight=False, markup=False)


def _slide_line(row: Row) -> str:
    assert row.tissue_mm2 is not None
    parts = [f"{row.nuclei:,} nuclei", f"{row.tissue_mm2:.3g} mm2 of tissue"]
    if row.tissue_mm2 > 0:
        parts.append(f"{row.nuclei / row.tissue_mm2:,.0f} nuclei/mm2")
        parts.append(f"{row.tissue_mm2 / row.seconds:.3g} mm2/s")
    if row.peak_mb is not None:
        parts.append(f"at most {row.peak_mb:,.0f} MB of memory")
    return f"{Path(row.image).name}: {', '.join(parts)}"
