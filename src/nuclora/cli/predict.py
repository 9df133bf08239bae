"""`nuclora predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from nuclora.cli.options import AsJson, EngineName, Weights, WorkerCpus, WorkersPerGpu, ray_workers

if TYPE_CHECKING:
    from nuclora.inference.loading import Backend
    from nuclora.models.precision import Precision


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
            help="Microns per pixel, 0.05 to 10: of images, which are rescaled by it to what the adapter knows; "
            "of slides, in place of what the file says.",
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
    precision: Annotated[
        str, typer.Option(help="Compute in this: no (float32), bf16, fp16, or int8 (nuclora quantize).")
    ] = "no",
    backend: Annotated[str, typer.Option(help="Run the network by this: torch or, on a CPU, openvino.")] = "torch",
    engine: EngineName = "local",
    worker_cpus: WorkerCpus = None,
    workers_per_gpu: WorkersPerGpu = None,
    json_: AsJson = False,
) -> None:
    """Find the nuclei of images and slides: label maps, overlays, GeoJSON for QuPath, and tables."""
    import functools

    from nuclora.cli.predictions import predict_and_print
    from nuclora.inference.canvas import parse_region
    from nuclora.inference.images import predict_files

    predict_and_print(
        functools.partial(
            predict_files,
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
        ),
        as_json=json_,
        workers=ray_workers(engine, worker_cpus, workers_per_gpu),
    )
