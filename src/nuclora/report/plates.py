"""The figures of a report: which there are, what each shows, and their files."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from nuclora.data.folds import ALL_TILES
from nuclora.data.tiles import TileSet, counted
from nuclora.files import write_atomic
from nuclora.report import breakdowns, figures, overlays
from nuclora.report.analysis import NucleusAnalysis, analyse_nuclei, pick_examples, ranked
from nuclora.report.facts import trust
from nuclora.report.published import METRICS, PUBLISHED, PublishedResult
from nuclora.report.style import render
from nuclora.report.summary import (
    ERROR_KINDS,
    Entry,
    is_comparable,
    is_partial,
    main_protocol,
    same_tiles_before,
    scored_name,
)
from nuclora.run import FINE_TUNED, ZERO_SHOT, Run

_MOST_EXAMPLES = 8
"""Folds of which example tiles are shown."""


@dataclass(frozen=True)
class Plate:
    """One figure of the report.

    Attributes:
        section: The part of the page that it stands in.
        name: Stem of its files.
        title: What it is.
        caption: What to see in it.
        draw: Draws it.
        picture: Whether it shows tissue, which a page holds as JPEG, or is a chart, held as SVG.
    """

    section: str
    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]
    picture: bool = False


def save_plate(plate: Plate, folder: Path) -> str:
    """Draw a figure, write its PNG and SVG, and return it as a data URI for the page."""
    figure = plate.draw()
    png = render(figure, "png")
    # The layout is settled by now: the second writing need not find it again.
    figure.set_layout_engine(None)
    svg = render(figure, "svg")
    write_atomic(folder / f"{plate.name}.png", png)
    write_atomic(folder / f"{plate.name}.svg", svg)
    if not plate.picture:
        return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def plates(run: Run, summary: Mapping[str, Any], tiles: TileSet | None) -> Iterator[Plate]:
    """The figures that a run has the material for, in the order of the page.

    Args:
        run: The run.
        summary: What `summarise_run` says of it.
        tiles: Its labelled tiles; without them the figures that show or measure tiles are left out.
    """
    tuned = [entry for entry in summary["results"] if entry["stage"] == FINE_TUNED]
    yield from _result_plates(run, summary, tuned)
    yield from _training_plates(run)
    main = next((entry for entry in tuned if entry["protocol"] == main_protocol(summary)), None)
    if main is not None:
        yield from _tile_plates(run, summary, main, tiles)
    if (calibration := trust(summary)) is not None:
        yield _score_plate(calibration, scored_name(summary))
    # Without true nuclei there are no shares of them.
    if with_nuclei := [entry for entry in summary["results"] if entry["errors"]["nuclei"]]:
        yield _error_plate(with_nuclei)


def _tile_plates(run: Run, summary: Mapping[str, Any], main: Entry, tiles: TileSet | None) -> Iterator[Plate]:
    """Example tiles, and what the main protocol's scores depend on."""
    protocol = main["protocol"]
    if tiles is None:
        yield from _group_plates(main, summary)
        return
    analysis = analyse_nuclei(run, tiles, protocol, run.rows(FINE_TUNED, protocol))
    scored = scored_name(summary)
    yield _sample_plate(tiles, analysis.typical_tile, scored)
    yield from _example_plates(run, tiles, protocol, scored)
    # What the model finds by itself is shown even where it ran on a part of the tiles only.
    if protocol != "automatic" and run.rows(FINE_TUNED, "automatic"):
        yield from _example_plates(run, tiles, "automatic", scored)
    yield from _group_plates(main, summary)
    yield from _nucleus_plates(analysis, protocol, scored)


def _result_plates(run: Run, summary: Mapping[str, Any], tuned: Sequence[Entry]) -> Iterator[Plate]:
    if tuned:
        yield Plate(
            "results",
            "final-by-fold",
            "Final Dice, AJI and PQ by fold",
            f"Fine-tuned adapters on the {scored_name(summary)} of their folds, a row a protocol. The dashed line is "
            "the mean of the folds.",
            lambda: figures.final_by_fold(tuned),
        )
    pairs = {}
    for entry in tuned:
        before = {row["tile"]: row["aji"] for row in run.rows(ZERO_SHOT, entry["protocol"])}
        after = [row for row in run.rows(FINE_TUNED, entry["protocol"]) if row["tile"] in before]
        if after:
            pairs[entry["protocol"]] = (
                np.array([before[row["tile"]] for row in after]),
                np.array([row["aji"] for row in after]),
            )
    if pairs:
        yield Plate(
            "results",
            "zero-shot-and-fine-tuned",
            "Zero-shot and fine-tuned on the same tiles",
            f"Each point is one of the {scored_name(summary)}; over the dashed diagonal fine-tuning helped. The "
            "diamond is the mean over tiles.",
            lambda: figures.before_and_after(pairs),
        )
    if tuned and is_comparable(summary):
        ours = [
            PublishedResult(
                f"This run: {entry['base']}" + (f", {entry['tiles']} tiles" if is_partial(entry) else ""),
                entry["protocol"],
                *(entry["mean"][metric] for metric in METRICS),
            )
            for entry in tuned
        ]
        yield Plate(
            "published",
            "beside-published",
            "This run beside the published numbers",
            "Diamonds: this run; circles: others. Filled marks used no truth at test time, hollow ones did or do not "
            "say.",
            lambda: figures.beside_published(ours, PUBLISHED),
        )


def _training_plates(run: Run) -> Iterator[Plate]:
    records = {fold: run.training_records(fold) for fold in (*run.folds.folds, ALL_TILES)}
    validations = {
        fold: [record for record in of_fold if record["kind"] == "validation"] for fold, of_fold in records.items()
    }
    losses = {
        fold: [(record["step"], record["loss"]) for record in of_fold if record["kind"] == "step"]
        for fold, of_fold in records.items()
    }
    curves = {
        metric: {
            fold: [(record["step"], record[metric]) for record in of_fold]
            for fold, of_fold in validations.items()
            if of_fold
        }
        for metric in METRICS
    }
    if curves["dice"]:
        known_validations = [record for of_fold in validations.values() for record in of_fold]
        # Folds may differ in it by a tile.
        counts = sorted({record["tiles"] for record in known_validations})
        count = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        inner = "inner validation tile" if counts == [1] else "inner validation tiles"
        tiles = "of the fold's test tiles" if run.recipe.train.validate_on == "test" else inner
        protocol = known_validations[0]["protocol"]
        yield Plate(
            "training",
            "validation-by-step",
            "Dice, AJI and PQ during training",
            f"Validation on {count} {tiles} with the protocol {protocol}, a line a fold. The axes do not start at 0.",
            lambda: figures.validation_curves(curves, f"validation, {protocol}"),
        )
    if any(losses.values()):
        known = {fold: points for fold, points in losses.items() if points}
        yield Plate(
            "training",
            "training-loss",
            "Training loss",
            "Light: each step; strong: mean of the steps around it, a twenty-fifth of a fold's; a line a fold."
            + _unplottable(known),
            lambda: figures.training_loss(known),
        )


def _unplottable(losses: Mapping[int, Sequence[tuple[float, float]]]) -> str:
    """How many losses have no place on a figure, in words."""
    count = sum(not math.isfinite(loss) for points in losses.values() for _, loss in points)
    return f" Not shown: {count} of infinite or undefined loss." if count else ""


def _sample_plate(tiles: TileSet, name: str, scored: str) -> Plate:
    return Plate(
        "examples",
        "sample-tile",
        "A tile and its labels",
        f"Of the {scored} the one with the median number of nuclei, {name}. The colours only tell neighbours apart.",
        lambda: overlays.sample_with_labels(name, tiles[name].read()),
        picture=True,
    )


def _example_plates(run: Run, tiles: TileSet, protocol: str, scored: str) -> Iterator[Plate]:
    of_fold: dict[int, list[dict[str, Any]]] = {}
    for row in run.rows(FINE_TUNED, protocol):
        of_fold.setdefault(row["fold"], []).append(row)
    # Of very many folds, as in leave-organ-out, some spread over them will do.
    shown = {sorted(of_fold)[int(place)] for place in np.linspace(0, len(of_fold) - 1, _MOST_EXAMPLES)}
    for fold, rows in sorted((fold, rows) for fold, rows in of_fold.items() if fold in shown):
        names = ", ".join(f"{rank} {row['tile']}" for rank, row in ranked(rows))
        of_tiles = counted(len(rows), scored.removesuffix("s"))
        yield Plate(
            "examples",
            f"fold-{fold}-{protocol}",
            f"Fold {fold}, {protocol}: image, truth, prediction",
            f"Of {of_tiles}, by AJI: {names}. Middle: the colours only tell neighbours apart. Right: errors "
            "are told by outline and hatch as well as by colour; an outline that is too poor counts as a missed "
            "nucleus and a false prediction.",
            lambda rows=rows: overlays.examples(pick_examples(run, tiles, protocol, rows)),  # type: ignore[misc]
            picture=True,
        )


def _group_plates(entry: Entry, summary: Mapping[str, Any]) -> Iterator[Plate]:
    # One bar compares nothing.
    if len(entry["groups"]) < 2:
        return
    before = same_tiles_before(summary, entry)
    yield Plate(
        "where",
        "by-organ",
        "By organ",
        f"Protocol {entry['protocol']}, fine-tuned, mean over an organ's tiles, sorted by AJI; n is the number of "
        "tiles.",
        lambda: breakdowns.by_group(entry["groups"], before["groups"] if before else {}),
    )


def _nucleus_plates(analysis: NucleusAnalysis, protocol: str, scored: str) -> Iterator[Plate]:
    if analysis.densities.any():
        yield Plate(
            "where",
            "aji-by-density",
            "AJI and nucleus density",
            f"Protocol {protocol}, fine-tuned. Each point is one of the {scored}.",
            lambda: breakdowns.aji_against_density(analysis.densities, analysis.aji),
        )
    if len(analysis.areas):
        yield Plate(
            "where",
            "recall-by-size",
            "Nuclei found, by size",
            f"Protocol {protocol}, fine-tuned. Above: share of the true nuclei that a prediction matches, by equal "
            "shares of the nuclei, with 95 % intervals. Below: how many there are of each size.",
            lambda: breakdowns.recall_against_size(analysis.areas, analysis.found),
        )


def _score_plate(calibration: Mapping[str, Any], scored: str) -> Plate:
    return Plate(
        "scores",
        "score-reliability",
        "What a nucleus's score is worth",
        f"{calibration['nuclei']:,} nuclei of {calibration['tiles']} {scored}, protocol automatic. Left: IoU with "
        "the true nucleus that each fits best, by score; on the dashed diagonal the score can be taken at its word. "
        "Right: what is left where nuclei under a score are dropped; those with an IoU over 0.5 are right.",
        lambda: breakdowns.score_reliability(calibration["bins"], calibration["cuts"]),
    )


def _error_plate(results: Sequence[Entry]) -> Plate:
    shares = {}
    for entry in results:
        errors = entry["errors"]
        share = {kind: errors[kind] / errors["nuclei"] for kind in ERROR_KINDS}
        share["matched"] = 1 - share["missed"] - share["merged"] - share["split"]
        shares[f"{entry['stage']}, {entry['protocol']}"] = share
    return Plate(
        "errors",
        "error-types",
        "What became of the nuclei",
        "Left: of all true nuclei, the share that is found one for one, shares its prediction with another (merged), "
        "is broken over several (split), or is missed: matched by none. Right: predictions that match none (IoU over "
        "0.5). A nucleus whose outline is too poor counts as both.",
        lambda: breakdowns.error_shares(shares),
    )
