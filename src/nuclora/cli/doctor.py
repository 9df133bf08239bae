"""`nuclora doctor`."""

from __future__ import annotations

import dataclasses
import json

import typer

from nuclora.cli.options import AsJson


def doctor(json_: AsJson = False) -> None:
    """What this machine can do, what is missing, how to get it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from nuclora.doctor import diagnose

    findings = diagnose()
    console = Console()
    if json_:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        marks = {"good": "[green]ok[/]", "note": "[yellow]--[/]", "bad": "[bold red]!![/]"}
        table = Table(box=None, pad_edge=False)
        for column in ("", "what", "found", "mend"):
            table.add_column(column, overflow="fold")
        for finding in findings:
            table.add_row(marks[finding.state], *map(escape, (finding.what, finding.found, finding.mend)))
        console.print(table)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(2)
