"""`nuclora tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nuclora.cli.options import AsJson, Weights


def tune(
    run: Annotated[Path, typer.Argument(help="Run folder with trained folds.", show_default=False)],
    folds: Annotated[
        str | None, typer.Option("--folds", help="Only these, as in 4,5.", show_default="all that are trained")
    ] = None,
    weights: Weights = None,
    json_: AsJson = False,
) -> None:
    """Choose each fold's thresholds, on tiles that it neither trained nor is tested on.

    `nuclora cv` does the same before it evaluates. Thresholds go into the adapters.
    """
    import json

    from rich.console import Console

    from nuclora.cli.progress import ProgressMonitor
    from nuclora.cli.runs import parse_folds
    from nuclora.data.folds import fold_name
    from nuclora.report.tuning import print_thresholds
    from nuclora.run import Run
    from nuclora.training.interrupt import Interrupt
    from nuclora.training.tuning import tune_run

    opened = Run(run)
    monitor = ProgressMonitor()

    def progress(fold: int, done: int, total: int) -> None:
        monitor.evaluated(f"{fold_name(fold)}, tuning", done, total)
        interrupt.check()

    try:
        with Interrupt() as interrupt:
            thresholds = tune_run(opened, parse_folds(folds), weights, progress)
    finally:
        monitor.close()
    console = Console()
    if json_:
        typer.echo(json.dumps(thresholds, indent=2))
    else:
        print_thresholds(console, thresholds)
