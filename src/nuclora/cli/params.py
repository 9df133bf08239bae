"""`nuclora params`: what a recipe trains, in numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_NAMES = {
    "base": "base, all of it",
    "adapter": "LoRA adapter",
    "mask_decoder": "  mask decoder",
    "prompt_encoder": "  prompt encoder",
    "neck": "  encoder neck",
}


def params(
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="Name of a recipe, or its YAML file.")] = "paper",
    base: Annotated[str | None, typer.Option("--base", help="Another base than the recipe's.")] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Folder of a custom base.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a field: adapter.rank=32.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print numbers for machines.")] = False,
) -> None:
    """Show the parameters that a recipe trains. Needs no weights."""
    import json

    from nuclora.models.parameters import recipe_parameters
    from nuclora.recipe import load_recipe

    overrides = [*(set_ or []), *([f"base={base}"] if base else [])]
    chosen = load_recipe(recipe, overrides)
    table = recipe_parameters(chosen, weights)
    if json_:
        typer.echo(json.dumps(table.to_json()))
        return

    from rich import box
    from rich.console import Console
    from rich.table import Table

    view = Table(title=f"{chosen.name} on {chosen.base}", title_justify="left", box=box.SIMPLE_HEAD)
    view.add_column("part")
    view.add_column("parameters", justify="right")
    view.add_column("trained", justify="right")
    for row in table.rows:
        view.add_row(
            _NAMES[row.part],
            f"{row.parameters:,}",
            f"{row.parameters:,}" if row.trained else "-",
            style="" if row.trained else "dim",
        )
    view.add_section()
    view.add_row("total", f"{table.total:,}", f"{table.trainable:,}", style="bold")
    console = Console()
    console.print(view)
    console.print(
        f"Trainable: [bold]{table.trainable:,}[/] of {table.total:,}, [bold]{table.share:.2%}[/].", highlight=False
    )
