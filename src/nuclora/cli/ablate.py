"""`nuclora ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nuclora.cli.options import (
    AsJson,
    BaseName,
    Data,
    DataFormat,
    EngineName,
    SetFields,
    Weights,
    WorkerCpus,
    WorkersPerGpu,
    overrides,
    ray_workers,
)

if TYPE_CHECKING:
    from nuclora.cli.progress import ProgressMonitor
    from nuclora.training.changes import AblationRow


def ablate(
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the ablation, with a run folder for each row.")],
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="Reference recipe.", show_default="that of the list"),
    ] = None,
    changes: Annotated[
        str | None,
        typer.Option(
            "--changes",
            "-c",
            help="Name of a shipped list of changes, or a YAML file.",
            show_default="that of the recipe",
        ),
    ] = None,
    folds: Annotated[str, typer.Option(help="Folds to train and test, as in 1,2.")] = "1",
    only: Annotated[
        str | None, typer.Option(help="Work on these rows only, as in reference,stain.", show_default="all")
    ] = None,
    base: BaseName = None,
    weights: Weights = None,
    set_fields: SetFields = None,
    fold_table: Annotated[
        Path | None,
        typer.Option("--fold-table", help="CSV of `nuclora folds`.", show_default="5 random folds"),
    ] = None,
    data_format: DataFormat = None,
    engine: EngineName = "local",
    worker_cpus: WorkerCpus = None,
    workers_per_gpu: WorkersPerGpu = None,
    json_: AsJson = False,
) -> None:
    """Train and test a recipe and each of a list of changes, and compare them tile by tile.

    Goes on from what the folder holds; where everything is there, it only prints the table.
    """
    import json
    import os

    from rich.console import Console

    from nuclora.cli.runs import parse_folds
    from nuclora.data import open_tiles
    from nuclora.data.folds import FoldTable
    from nuclora.errors import NucloraError
    from nuclora.report.ablation import write_ablation
    from nuclora.report.ablation_table import WIDTH, print_ablation
    from nuclora.training.ablation import plan_ablation, run_ablation
    from nuclora.training.changes import list_of, load_list

    workers = ray_workers(engine, worker_cpus, workers_per_gpu)
    ablation = plan_ablation(
        open_tiles(data, data_format),
        load_list(changes or list_of(recipe)),
        out,
        recipe=recipe,
        overrides=overrides(base, set_fields),
        fold_table=FoldTable.read(fold_table) if fold_table else None,
        folds=parse_folds(folds) or [1],
        only=[name.strip() for name in only.split(",")] if only else None,
        weights=weights,
    )
    if os.environ.get("RANK", "0") != "0":
        run_ablation(ablation)
        return
    write_ablation(ablation)
    if workers is None or not ablation.pending:
        failed = run_ablation(ablation, before=_announce, after=lambda row: write_ablation(ablation))
    else:
        from nuclora.cli.progress import LineMonitor, say
        from nuclora.scale.cluster import connect
        from nuclora.scale.training import run_ablation_on

        with connect(workers) as cluster:
            failed = run_ablation_on(
                cluster,
                ablation,
                before=lambda row: LineMonitor(f"row {row.name}, "),
                after=lambda row: write_ablation(ablation),
                say=say,
            )
    summary = write_ablation(ablation)
    console = Console()
    if json_:
        typer.echo(json.dumps(summary, indent=2))
    else:
        console.width = max(console.width, WIDTH)
        print_ablation(console, summary)
        table = out / "ablation"
        console.print(f"table: {table}.md, .csv, .json", soft_wrap=True, highlight=False, markup=False)
    if failed:
        name, error = next(iter(failed.items()))
        told = "1 row failed" if len(failed) == 1 else f"{len(failed)} rows failed, first"
        raise NucloraError(f"{told}: {name}: {error.reason}", path=error.path, mend=error.mend)


def _announce(row: AblationRow) -> ProgressMonitor:
    from rich.console import Console

    from nuclora.cli.progress import ProgressMonitor

    Console(stderr=True).print(f"row {row.name}: {row.why}", highlight=False, soft_wrap=True, markup=False)
    return ProgressMonitor()
