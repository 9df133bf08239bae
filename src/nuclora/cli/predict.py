"""`nuclora predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from nuclora.cli.options import AsJson, EngineName, Weights, WorkerCpus, ray_cpus

if TYPE_CHECKING:
    from rich.console import Console

    from nuclora.inference.images import Outcome
    from nuclora.inference.outputs import Row
    from nuclora.inference.predictor import Backend, Precision

_ROWS_SHOWN = 20


def predict(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Images, slides, folders of them, and globs.", show_default=False),
    ],
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", "-a", help="Folder of an adapter.", show_default="the one nuclora carries"),
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder of the outputs; an interrupted prediction in it is gone on with."),
    ] = Path("nuclora-out"),
    format_: Annotated[
        str, typer.Option("--format", metavar="LIST", help="Outputs of each image, with commas between them.")
    ] = "labels,overlay,geojson,table",
    views: Annotated[
        int | None,
        typer.Option(
            "--views",
            "--tta",
            help="Flips and quarter turns that are averaged: 1, 2, 4 or 8. Fewer are faster.",
            show_default="the adapter's",
        ),
    ] = None,
    min_size: Annotated[
        int | None, typer.Option(min=0, help="Smallest nucleus in pixels.", show_default="the adapter's")
    ] = None,
    microns_per_pixel: Annotated[
        float | None,
        typer.Option(
            "--mpp",
            min=0.001,
            max=100,
            help="Microns per pixel: of images, for areas in square microns; of slides in place of what the file says.",
        ),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(metavar="X,Y,WIDTH,HEIGHT", help="Only this rectangle of a slide, in pixels of level 0."),
    ] = None,
    no_tissue_mask: Annotated[
        bool, typer.Option("--no-tissue-mask", help="Look for nuclei on the glass of slides too.")
    ] = False,
    recursive: Annotated[bool, typer.Option("--recursive", help="Look into the folders of folders too.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make all outputs anew, in place of what is there.")
    ] = False,
    weights: Weights = None,
    precision: Annotated[str, typer.Option(help="Compute in this: no (float32), bf16 or fp16.")] = "no",
    backend: Annotated[str, typer.Option(help="Run the network by this: torch or, on a CPU, openvino.")] = "torch",
    engine: EngineName = "local",
    worker_cpus: WorkerCpus = None,
    json_: AsJson = False,
) -> None:
    """Find the nuclei of images and slides: label maps, overlays, GeoJSON for QuPath, and tables."""
    import contextlib
    import json
    from dataclasses import asdict

    from rich.console import Console

    from nuclora.cli.progress import LineMonitor, ProgressMonitor
    from nuclora.errors import NucloraError
    from nuclora.inference.canvas import parse_region
    from nuclora.inference.images import predict_files
    from nuclora.inference.predictor import BACKENDS, PRECISIONS
    from nuclora.scale.cluster import connect
    from nuclora.scale.prediction import RayEngine
    from nuclora.training.interrupt import Interrupt

    for choice, known in ((precision, PRECISIONS), (backend, BACKENDS)):
        if choice not in known:
            raise NucloraError(f"no such choice: {choice}", mend=f"choose one of {', '.join(known)}")
    cpus = ray_cpus(engine, worker_cpus)
    monitor = ProgressMonitor() if cpus is None else LineMonitor()

    def progress(done: int, total: int) -> None:
        monitor.predicted(done, total)
        interrupt.check()

    def block_progress(name: str, done: int, total: int) -> None:
        monitor.predicted_block(name, done, total)
        interrupt.check()

    with contextlib.ExitStack() as stack:
        stack.callback(monitor.close)
        cluster = stack.enter_context(connect(cpus)) if cpus is not None else None
        # After Ray, which has a handler of its own.
        interrupt = stack.enter_context(Interrupt())
        workers = stack.enter_context(contextlib.closing(RayEngine(cluster, interrupt.check))) if cluster else None
        outcome = predict_files(
            inputs,
            out,
            adapter,
            formats=[name.strip() for name in format_.split(",") if name.strip()],
            views=views,
            min_size=min_size,
            microns_per_pixel=microns_per_pixel,
            region=parse_region(region) if region is not None else None,
            tissue_mask=not no_tissue_mask,
            weights=weights,
            precision=cast("Precision", precision),
            backend=cast("Backend", backend),
            recursive=recursive,
            overwrite=overwrite,
            progress=progress,
            block_progress=block_progress,
            engine=workers,
        )
    console = Console()
    if json_:
        failures = [{"image": str(error.path), "reason": error.reason} for error in outcome.failures]
        images = [{**asdict(row), "kept": row.image in outcome.kept} for row in outcome.rows]
        told = {"out": str(out), "images": images, "failures": failures, "notes": outcome.notes}
        console.print_json(json.dumps(told))
    elif outcome.rows:
        _print_table(console, outcome)
    for error in outcome.failures:
        typer.secho(f"nuclora: {' '.join(str(error).splitlines())}", fg="red", err=True)
    if outcome.failures:
        raise typer.Exit(2)


def _print_table(console: Console, outcome: Outcome) -> None:
    """A row an image, named by what tells it from the others: its path below the folder that holds them all."""
    import os

    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = outcome.rows
    folder = os.path.commonpath([Path(row.image).absolute().parent for row in rows])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=len(rows) > 1)
    table.add_column("image", "all", overflow="fold")
    table.add_column("pixels", justify="right", no_wrap=True)
    table.add_column("nuclei", f"{sum(row.nuclei for row in rows):,}", justify="right", no_wrap=True)
    table.add_column("mean area", justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    for row in rows[:_ROWS_SHOWN]:
        area = "" if row.mean_area_px is None else f"{row.mean_area_px:,.0f} px"
        seconds = "kept" if row.image in outcome.kept else f"{row.seconds:.1f}"
        name = Path(row.image).absolute().relative_to(folder)
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
