"""The `nuclora` command: thin commands over plain functions.

The command modules import next to nothing until they run, so that `nuclora --help` does not wait for torch.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated

import typer

from nuclora.cli import (
    ablate,
    cv,
    data,
    demo,
    doctor,
    evaluate,
    export,
    folds,
    params,
    predict,
    quantize,
    report,
    train,
    tune,
    weights,
)
from nuclora.errors import NucloraError, shortage_told
from nuclora.training.interrupt import Stopped

STOPPED = 130
BROKEN_PIPE = 141

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# In the order of a newcomer's day.
app.command()(doctor.doctor)
app.command()(demo.demo)
app.add_typer(weights.app, name="weights")
app.add_typer(data.app, name="data")
app.command()(folds.folds)
app.command()(params.params)
app.command()(train.train)
app.command()(cv.cv)
app.command()(ablate.ablate)
app.command()(tune.tune)
app.command()(evaluate.evaluate)
app.command()(report.report)
app.command()(predict.predict)
app.command()(export.export)
app.command()(quantize.quantize)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"nuclora {version('nuclora')}")
        raise typer.Exit


@app.callback()
def nuclora(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Teach the Segment Anything Model your nuclei: LoRA fine-tuning for nuclei segmentation in H&E histology."""


def _stop(number: int, frame: FrameType | None) -> None:
    typer.echo("nuclora: stopped", err=True)
    sys.exit(STOPPED)


def run() -> None:
    """Entry point: exit 0 done, 2 wrong use or bad input, 130 stopped by the user, 141 output cut off, 1 our fault."""
    # The hubs behind transformers and peft have nothing to say to a user of nuclora, and nothing is asked of them.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for stream in (sys.stdout, sys.stderr):
        # Where a terminal has no letter for something, a question mark will do.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # As a KeyboardInterrupt it would end in typer's "Aborted!" and exit code 1.
        signal.signal(signal.SIGINT, _stop)
    try:
        with shortage_told():
            app()
    except NucloraError as error:
        typer.secho(f"nuclora: {error}", fg="red", err=True)
        sys.exit(2)
    except Stopped:
        typer.echo("nuclora: stopped, everything is saved; run the same command again to go on", err=True)
        sys.exit(STOPPED)
    except SystemExit as end:
        # Only typer and rich exit with 1, and only where the reader of our output (head, less) has gone.
        sys.exit(BROKEN_PIPE if end.code == 1 else end.code)
    except OSError as error:
        # What no room foresaw, such as a disk that goes away, is still the machine's and has a name.
        place = f"{error.filename}: " if error.filename else ""
        typer.secho(
            f"nuclora: {place}{error.strerror or error}; check the disk and the permissions", fg="red", err=True
        )
        sys.exit(2)
    except Exception:
        traceback.print_exc()
        typer.secho("nuclora: this is our fault, not yours; please report it with the lines above", fg="red", err=True)
        sys.exit(1)
