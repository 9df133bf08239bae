"""`nuclora evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nuclora.cli.options import AsJson, DataFormat, Weights, named

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = ("dice", "aji", "aji_plus", "dq", "sq", "pq", "f1", "msa", "count_error")


def evaluate(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] DATA",
            help="An adapter, a run or a base; and a folder of labelled tiles.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder of the results; an interrupted evaluation in it is gone on with."),
    ],
    protocols: Annotated[
        list[str] | None,
        typer.Option(
            "--protocol",
            "-p",
            help="oracle-box, oracle-point or automatic; may be repeated.",
            show_default="the recipe's",
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Evaluate this base as it came, in place of MODEL.")
    ] = None,
    weights: Weights = None,
    set_fields: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change an evaluate field of the recipe; may be repeated."),
    ] = None,
    input_size: Annotated[
        int | None,
        typer.Option(min=32, max=8192, help="Side of the square input in pixels.", show_default="the model's"),
    ] = None,
    precision: Annotated[str, typer.Option(help="Compute in this: no (float32), bf16 or fp16.")] = "no",
    data_format: DataFormat = None,
    json_: AsJson = False,
) -> None:
    """Score an adapter, a run or a bare base on labelled tiles."""
    import json
    from typing import cast

    from rich.console import Console

    from nuclora.allocator import keep_freed_memory
    from nuclora.cli.progress import ProgressMonitor
    from nuclora.data import open_tiles
    from nuclora.errors import NucloraError
    from nuclora.inference.standalone import evaluate_source, find_source
    from nuclora.models.precision import AUTOCAST, Precision
    from nuclora.recipe import PROTOCOLS, change_evaluation
    from nuclora.training.interrupt import Interrupt

    model, data = _model_and_data(places, base)
    for name, known in ((precision, ("no", *AUTOCAST)), *((protocol, PROTOCOLS) for protocol in protocols or ())):
        if name not in known:
            raise NucloraError(f"no such choice: {name}", mend=f"choose one of {', '.join(known)}")
    tiles = open_tiles(data, data_format)
    source = find_source(model, tiles)
    settings = {fold: change_evaluation(own, set_fields or []) for fold, own in source.settings.items()}
    chosen = tuple(dict.fromkeys(protocols or next(iter(settings.values())).protocols))
    monitor = ProgressMonitor()
    keep_freed_memory()

    def progress(fold: int, done: int, total: int) -> None:
        monitor.evaluated(f"{model}, fold {fold}" if fold else model, done, total)
        interrupt.check()

    try:
        with Interrupt() as interrupt:
            summary = evaluate_source(
                source,
                tiles,
                out,
                protocols=chosen,
                settings=settings,
                weights=weights,
                precision=cast(Precision, precision),
                input_size=input_size,
                progress=progress,
            )
    finally:
        monitor.close()
    console = Console()
    if json_:
        typer.echo(json.dumps(summary, indent=2))
    else:
        _print_table(console, model, summary["protocols"])
        console.print(f"scores and labels: {out}", soft_wrap=True, highlight=False, markup=False)


def _model_and_data(places: list[str], base: str | None) -> tuple[str, str]:
    from nuclora.errors import NucloraError

    for place in places:
        named(place)
    wanted = 1 if base else 2
    if len(places) != wanted:
        raise NucloraError(
            f"{len(places)} places given, {wanted} wanted",
            mend="write `nuclora evaluate MODEL DATA -o OUT` or `nuclora evaluate --base NAME DATA -o OUT`",
        )
    return (base, places[0]) if base else (places[0], places[1])


def _print_table(console: Console, model: str, protocols: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    from nuclora.data.tiles import counted

    console.print(f"{model}: mean and 95 % interval over tiles", soft_wrap=True, highlight=False, markup=False)
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("measure")
    for name, summary in protocols.items():
        done, wanted = summary["tiles"], summary["of_tiles"]
        table.add_column(f"{name}\n{'' if done == wanted else f'{done} of '}{counted(wanted, 'tile')}", justify="right")
    for measure in _SHOWN:
        cells = []
        for summary in protocols.values():
            ends = summary["interval"][measure]
            interval = rf"\[{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "–"
            cells.append(f"{summary['mean'][measure]:.3f} {interval}")
        table.add_row(measure, *cells)
    console.print(table)
    for name, summary in protocols.items():
        console.print(f"{name}: {summary['description']}", soft_wrap=True, highlight=False)
