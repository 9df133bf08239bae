"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from nuclora.scale.cluster import WorkerSize


def named(given: str) -> Path:
    """A place that an argument names.

    Raises:
        NucloraError: It names none.
    """
    if not given:
        # A shell's variable that is not set; as a path it would be the current folder.
        from nuclora.errors import NucloraError

        raise NucloraError("an argument is empty", mend="name a folder")
    return Path(given)


Data = Annotated[Path, typer.Argument(help="Folder of labelled tiles.", parser=named, show_default=False)]
DataFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Layout of the tiles: nuinsseg, folder, monuseg, pannuke, matlab, coco, qupath, cellpose, stardist or"
        " dsb2018.",
        show_default="found by looking",
    ),
]
RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="Name of a shipped recipe, or a YAML file.")]
BaseName = Annotated[str | None, typer.Option("--base", help="Base network in place of the recipe's.")]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="File or folder of the base's weights.", show_default="looked for")
]
SetFields = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a recipe field; may be repeated.")
]
EngineName = Annotated[
    Literal["local", "ray"],
    typer.Option(help="Work in this process, or on the Ray cluster of RAY_ADDRESS or of this machine (extra: scale)."),
]
WorkerCpus = Annotated[
    int | None, typer.Option("--worker-cpus", min=1, help="Cores of each Ray worker.", show_default="1")
]
WorkersPerGpu = Annotated[
    int | None,
    typer.Option("--workers-per-gpu", min=1, max=64, help="Ray workers that share a GPU.", show_default="1"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print results as JSON.")]


def overrides(base: str | None, fields: list[str] | None) -> list[str]:
    """The recipe overrides that `--base` and `--set` amount to."""
    return [*([f"base={base}"] if base else []), *(fields or [])]


def ray_workers(engine: str, cpus: int | None, per_gpu: int | None) -> WorkerSize | None:
    """What each Ray worker is given; none where there are to be no Ray workers.

    Args:
        engine: `--engine`.
        cpus: `--worker-cpus`.
        per_gpu: `--workers-per-gpu`.

    Raises:
        NucloraError: Something is given to them nevertheless.
    """
    if engine == "ray":
        from nuclora.scale.cluster import WorkerSize

        return WorkerSize(cpus or 1, per_gpu or 1)
    mends = {
        "--worker-cpus": (cpus, "leave it out, or set OMP_NUM_THREADS"),
        "--workers-per-gpu": (per_gpu, "leave it out"),
    }
    for option, (given, mend) in mends.items():
        if given is not None:
            from nuclora.errors import NucloraError

            raise NucloraError(f"{option} is for --engine ray", mend=mend)
    return None
