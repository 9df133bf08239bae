"""What `cv`, `train` and `demo` share: a run with its progress shown and its table printed."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import typer
from rich.console import Console

from nuclora.cli.progress import LineMonitor, ProgressMonitor, say
from nuclora.data.folds import ALL_TILES
from nuclora.errors import NucloraError
from nuclora.extras import require
from nuclora.report.summary import print_table, write_summary
from nuclora.run import Run
from nuclora.scale.cluster import WorkerSize, connect
from nuclora.training.crossval import CrossValidation
from nuclora.training.monitor import Monitor, Monitors, TensorBoardMonitor


def parse_folds(text: str | None) -> list[int] | None:
    """Fold numbers of a text such as ``4,5``."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise NucloraError(f"--folds {text}: not numbers", mend="write e.g. --folds 4,5") from error


def cross_validate_and_print(
    work: CrossValidation, *, tensorboard: bool = False, as_json: bool = False, workers: WorkerSize | None = None
) -> Run | None:
    """Run folds, then write and print the summary.

    Args:
        work: What is to be done.
        tensorboard: Write scalars for TensorBoard too.
        as_json: Print JSON.
        workers: What each worker of a Ray cluster is given; none works in this process.

    Returns:
        The run; none in the helper processes of a distributed run, which print nothing.
    """
    # Set by `accelerate launch` and torchrun.
    main = os.environ.get("RANK", "0") == "0"
    monitors: list[Monitor] = [_tensorboard(work.out)] if tensorboard and main else []
    if main:
        # Last: from here on the bar is on the terminal, and only what is tried below takes it off again.
        monitors.append(ProgressMonitor() if workers is None else LineMonitor())
    monitor = Monitors(monitors)
    try:
        if workers is None:
            run = work.run(monitor)
        else:
            from nuclora.scale.training import cross_validate_on

            with connect(workers) as cluster:
                run = cross_validate_on(cluster, work, monitor, say)
    finally:
        monitor.close()
    if not main:
        return None
    console = Console()
    if work.folds and (ALL_TILES in work.folds or not work.evaluate):
        adapter = str(run.adapter_folder(work.folds[0]))
        if as_json:
            typer.echo(json.dumps({"adapter": adapter}, indent=2))
        else:
            console.print(f"adapter: {adapter}", soft_wrap=True, highlight=False, markup=False)
        return run
    summary = write_summary(run)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        print_table(console, summary)
        report = f"nuclora report {shlex.quote(str(run.folder))}"
        console.print(f"run: {run.folder}   next: {report}", soft_wrap=True, highlight=False, markup=False)
    return run


def _tensorboard(out: Path) -> Monitor:
    require("tensorboard", "--tensorboard")
    return TensorBoardMonitor(out / "tensorboard")
