"""`nuclora quantize`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from nuclora.cli.options import Weights


def quantize(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Images like those to be predicted: files, folders and globs."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the copy.", show_default=False)],
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", "-a", help="Folder of an adapter.", show_default="the one nuclora carries"),
    ] = None,
    weights: Weights = None,
) -> None:
    """Copy an adapter with its network in 8 bits too, which processors without fast bfloat16 are quicker in.

    Some forty images like those to be predicted are looked at, which takes minutes. Needs the extra int8.
    """
    from nuclora.cli.progress import ProgressMonitor
    from nuclora.data.tiles import counted
    from nuclora.inference.quantize import CALIBRATED, quantize_adapter
    from nuclora.models.adapter import shipped_adapter
    from nuclora.training.interrupt import Interrupt

    monitor = ProgressMonitor()

    def progress(done: int, total: int) -> None:
        monitor.calibrated(done, total)
        interrupt.check()

    try:
        with Interrupt() as interrupt:
            made = quantize_adapter(adapter or shipped_adapter(), images, out, weights, progress)
    finally:
        monitor.close()
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    few = "" if made.calibrated == CALIBRATED else ", few: some forty images are better"
    typer.echo(f"{out}: {size:.1f} MB, its network in 8 bits by {counted(made.calibrated, 'window')}{few}")
    typer.echo(
        f"in {counted(made.checked, 'window')} of {'other images' if made.apart else 'the same image'} it finds "
        f"{made.nuclei:,} nuclei, in float32 {made.nuclei_float:,}; PQ of the one against the other {made.pq:.3f}"
    )
    typer.echo(f"use it with: nuclora predict IMAGE... -a {shlex.quote(str(out))} --backend openvino --precision int8")
