"""`nuclora params`: what a recipe trains, in numbers."""

from __future__ import annotations

import typer

from nuclora.cli.options import AsJson, BaseName, RecipeName, SetFields, Weights, overrides

_NAMES = {
    "base": "base, all of it",
    "adapter": "LoRA adapter",
    "mask_decoder": "  mask decoder",
    "prompt_encoder": "  prompt encoder",
    "neck": "  encoder neck",
    "convolutions": "  encoder convolutions",
    "vision_encoder": "  encoder",
    "dense_decoder": "dense decoder",
}


def params(
    recipe: RecipeName = "paper",
    base: BaseName = None,
    weights: Weights = None,
    set_: SetFields = None,
    json_: AsJson = False,
) -> None:
    """Show the parameters that a recipe trains. Needs no weights."""
    import json

    from nuclora.errors import NucloraError
    from nuclora.models.parameters import count_recipe
    from nuclora.recipe import load_recipe

    chosen = load_recipe(recipe, overrides(base, set_))
    if weights and not weights.exists():
        raise NucloraError("no such file or folder", path=weights, mend="check --weights")
    table = count_recipe(chosen, weights)
    if json_:
        typer.echo(json.dumps(table.to_json()))
        return

    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    view = Table(title=escape(f"{chosen.name} on {chosen.base}"), title_justify="left", box=box.SIMPLE_HEAD)
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
