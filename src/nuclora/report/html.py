"""The report of a run as one HTML page that needs nothing outside itself."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nuclora.data import open_tiles
from nuclora.data.tiles import TileSet
from nuclora.errors import NucloraError
from nuclora.files import write_atomic
from nuclora.report import facts
from nuclora.report.plates import plates, save_plate
from nuclora.report.published import METRICS, PUBLISHED, STUDY, STUDY_FOLDS
from nuclora.report.summary import UPPER_BOUND, summarise_run
from nuclora.run import Run

PAGE = "report.html"


def write_report(run: Run, out: str | Path | None = None, data: TileSet | None = None) -> Path:
    """Write the report: a page with everything in it, and each figure as PNG and SVG beside it.

    Works at any time: what is not trained or evaluated yet is named and left out.

    Args:
        run: The run.
        out: Folder of the page and of ``figures/``; by default the run's own.
        data: The labelled tiles, if they are no longer where the run read them. Without any the figures that show
            tiles are left out.

    Returns:
        The page.

    Raises:
        NucloraError: The tiles are damaged or not those of the run, or nothing can be written.
    """
    folder = Path(out) if out else run.report_folder
    summary = summarise_run(run)
    notes = facts.partial_notes(run, summary)
    if data is None:
        data, note = _find_tiles(run)
        notes += note
    else:
        run.check_tiles(data)
    figures = [
        {"number": number, "plate": plate, "uri": save_plate(plate, folder / "figures")}
        for number, plate in enumerate(plates(run, summary, data), start=1)
    ]
    environment = Environment(
        loader=PackageLoader("nuclora.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["thousands"] = "{:,}".format
    environment.filters["marked"] = _marked
    parameters = facts.parameters(run)
    page = environment.get_template("report.html.j2").render(
        title=f"Nuclei segmentation with {run.recipe.base} + LoRA, recipe {run.recipe.name}",
        subtitle=facts.subtitle(run, summary),
        cards=facts.cards(summary, parameters),
        notes=notes,
        results=summary["results"],
        gains=any(entry["gain"] for entry in summary["results"]),
        empty_note=facts.empty_note(run, summary),
        folds=summary["folds"],
        metrics=METRICS,
        upper_bound=UPPER_BOUND,
        comparison=facts.comparison(summary),
        published=PUBLISHED,
        study=STUDY,
        study_folds=STUDY_FOLDS,
        validation_note=facts.validation_note(run, summary),
        training=facts.training(run),
        thresholds=summary["thresholds"],
        # Cards may have been tuned by different versions.
        threshold_names=list(dict.fromkeys(name for row in summary["thresholds"] for name in row if name != "fold")),
        trust=facts.trust(summary),
        organs=facts.organs(summary),
        parameters=parameters,
        part_names=facts.PART_NAMES,
        recipe_yaml=run.recipe.to_yaml(),
        sessions=run.info["sessions"],
        precisions={"no": "float32", "bf16": "bfloat16", "fp16": "float16"},
        sessions_note=facts.sessions_note(run),
        hashes=facts.hashes(run),
        commands=facts.commands(run),
        figures=figures,
        sections={plate["plate"].section for plate in figures},  # type: ignore[attr-defined]
        version=metadata.version("nuclora"),
    )
    # Paths and commands may hold what is no UTF-8, as lone surrogates.
    write_atomic(folder / PAGE, page.encode("utf-8", "replace"))
    return folder / PAGE


def _marked(text: str) -> Markup:
    """Words for a terminal as HTML: what stands between backticks is code."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>" if place % 2 else "{}").format(part) for place, part in enumerate(parts)
    )


def _find_tiles(run: Run) -> tuple[TileSet | None, list[str]]:
    """The tiles where the run read them, or a note that they are gone or others."""
    place = run.info["data"]
    try:
        tiles = open_tiles(place["root"], place["format"])
        run.check_tiles(tiles)
        return tiles, []
    except NucloraError as error:
        return None, [
            f"The labelled tiles could not be opened ({error}), so the figures that show tiles or measure nuclei are "
            "left out. Write the report again with --data to have them."
        ]
