"""`nuclora export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    adapter: Annotated[Path, typer.Argument(help="Folder of an adapter, as RUN/fold-1/adapter.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the copy.", show_default=False)],
    microns_per_pixel: Annotated[
        float | None,
        typer.Option(
            "--mpp",
            help="Microns per pixel, 0.05 to 10, of the training tiles, by which slides are rescaled.",
            show_default="as the card says",
        ),
    ] = None,
) -> None:
    """Copy an adapter in half precision, to share it."""
    from nuclora.models.adapter import read_card, save_half

    save_half(adapter, out, microns_per_pixel)
    size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    left = ", without its network in 8 bits: nuclora quantize makes one of the copy" if read_card(adapter).int8 else ""
    typer.echo(f"{out}: {size:.1f} MB{left}")
