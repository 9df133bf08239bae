"""`nuclora report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from nuclora.cli.options import AsJson, DataFormat


def report(
    run: Annotated[Path, typer.Argument(help="Run folder of `nuclora cv`, finished or not.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the page and figures/.", show_default="RUN/report")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Labelled tiles, if they have moved.", show_default="where RUN read them"),
    ] = None,
    data_format: DataFormat = None,
    json_: AsJson = False,
) -> None:
    """Write the report of a run: one self-contained HTML page, and its figures as PNG and SVG."""
    from nuclora.data import open_tiles
    from nuclora.errors import NucloraError
    from nuclora.report.html import write_report
    from nuclora.run import Run

    if data_format and not data:
        raise NucloraError("--format is for tiles that --data names", mend="name them, or leave it out")
    opened = Run(run)
    page = write_report(opened, out, open_tiles(data, data_format) if data else None)
    typer.echo(json.dumps({"report": str(page), "figures": str(page.parent / "figures")}) if json_ else str(page))
