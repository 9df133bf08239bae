"""The `nuclora` command: thin commands over plain functions, each loaded when it is asked for."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

import click
import typer
from typer.core import TyperGroup

# command: (module under nuclora.cli, name in it, help), in the order of a newcomer's day. A module is imported when
# its command runs, so that `nuclora --help` does not wait for torch.
COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("doctor", "What this machine can do, what is missing, how to get it."),
    "demo": ("demo", "The main job on synthetic tiles and the embedded base, in minutes, on a CPU."),
    "weights": ("weights", "List the base networks, or fetch one."),
    "data": ("data", "Fetch, check or synthesise labelled tiles."),
    "folds": ("folds", "Write the fold table of a data set."),
    "params": ("params", "Count the parameters of a recipe: base, adapter, decoder, trainable share."),
    "train": ("train", "Train one fold, or one adapter on all tiles."),
    "cv": ("cv", "Cross-validate: train and evaluate every fold; goes on from what the run holds."),
    "evaluate": ("evaluate", "Score an adapter, a run or a bare base on labelled tiles."),
    "report": ("report", "Write the report of a run: one HTML page, and its figures."),
}


class LazyGroup(TyperGroup):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module_name, help_text = COMMANDS[cmd_name]
        if ctx.resilient_parsing or _only_lists(ctx):
            return click.Command(cmd_name, help=help_text)
        module = importlib.import_module(f"nuclora.cli.{module_name}")
        if hasattr(module, "app"):
            command: click.Command = typer.main.get_command(module.app)
        else:
            command = _single_command(getattr(module, cmd_name))
        command.name = cmd_name
        command.help = help_text
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        ctx.meta["nuclora.command"] = args[0] if args else None
        return super().resolve_command(ctx, args)


def _only_lists(ctx: click.Context) -> bool:
    """Whether commands are only listed, as by `nuclora --help`."""
    return "nuclora.command" not in ctx.meta


def _single_command(function: Any) -> click.Command:
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command()(function)
    return typer.main.get_command(app)


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"nuclora {version('nuclora')}")
        raise typer.Exit


@app.callback()
def nuclora(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Teach the Segment Anything Model your nuclei: LoRA fine-tuning for nuclei segmentation in H&E histology."""


def run() -> None:
    """Entry point: exit 0 done, 2 wrong use or bad input, 130 stopped by the user, 1 our fault."""
    # The tokenizers and hubs behind transformers have nothing to say to a user of nuclora.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from nuclora.errors import NucloraError

    try:
        app()
    except NucloraError as error:
        typer.secho(f"nuclora: {error}", fg="red", err=True)
        sys.exit(2)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if type(error).__name__ == "Stopped":
            typer.echo("nuclora: stopped, everything is saved; run the same command again to go on", err=True)
            sys.exit(130)
        traceback.print_exc()
        typer.secho("nuclora: this is our fault, not yours; please report it with the lines above", fg="red", err=True)
        sys.exit(1)
