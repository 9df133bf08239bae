"""The numbers of a run: one entry a stage and protocol, as JSON and as a table on the terminal."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nuclora.data.folds import ALL_TILES, FoldTable, scored_tiles
from nuclora.evaluation import Row
from nuclora.files import hold, write_atomic
from nuclora.metrics.aggregate import paired_difference, summarise
from nuclora.models.bases import BASES
from nuclora.report.published import METRICS, NUINSSEG_TILES, PUBLISHED, PUBLISHED_FOLDS
from nuclora.report.reliability import calibration
from nuclora.run import FINE_TUNED, STAGES, ZERO_SHOT, Run

if TYPE_CHECKING:
    from rich.console import Console

Entry = dict[str, Any]

UPPER_BOUND = "upper bound: prompts from the truth"
ERROR_KINDS = ("missed", "merged", "split", "false")


def summarise_run(run: Run) -> dict[str, Any]:
    """Summarise what a run has evaluated so far.

    Args:
        run: The run, whole or in the middle of its work.

    Returns:
        `tiles` and `folds` of the fold table; `dealt`, "organ" where each organ is in one fold, "tile" else;
        `scored`, the recipe's `evaluate.tiles`; `thresholds` of :func:`tuned_thresholds`; and `results`: an entry for
        each stage and protocol with evaluated tiles, in the form of ``docs/results/study.json``. An entry has what
        made it (`recipe`, `base`, `stage`, `protocol`, `seed`, `epochs`, `input_size` (none of a custom base that
        nobody has trained yet), `command` and `commit` of all sessions); `tiles` of `of_tiles` evaluated;
        `folds`, `mean`, `pooled`, `interval` and `groups` of :func:`nuclora.metrics.aggregate.summarise`, each fold
        with its own `of_tiles`;
        `deviation`, the standard deviation of the folds' means (none of a single fold); and `errors`, the numbers of
        nuclei, of predictions and of each kind of error; `gain`, for each measure the difference of fine-tuned from
        zero-shot over the tiles that both have, with the ends of its 95 % interval (empty for zero-shot); and only
        where nuclei have scores, `calibration` of :func:`nuclora.report.reliability.calibration`.

    Raises:
        NucloraError: A score is missing or not a number.
    """
    table = run.folds
    rows = {
        (stage, protocol): run.rows(stage, protocol) for protocol in run.recipe.evaluate.protocols for stage in STAGES
    }
    results = [
        _entry(run, stage, protocol, evaluated, rows[ZERO_SHOT, protocol])
        for (stage, protocol), evaluated in rows.items()
        if evaluated
    ]
    return {
        "tiles": len(table.rows),
        "folds": list(table.folds),
        "dealt": _dealt(table),
        "scored": run.recipe.evaluate.tiles,
        "thresholds": tuned_thresholds(run),
        "results": results,
    }


def _dealt(table: FoldTable) -> str:
    """What the folds were made of. By the table alone: it may have come from a file."""
    folds_of: dict[str, set[int]] = {}
    for row in table.rows:
        folds_of.setdefault(row.group, set()).add(row.fold)
    return "organ" if all(len(folds) == 1 for folds in folds_of.values()) else "tile"


def write_summary(run: Run) -> dict[str, Any]:
    """Write ``summary.json`` of a run and return what is in it; see :func:`summarise_run`."""
    summary = summarise_run(run)
    # Held, so that who removes what killed writers left takes no file that is being written.
    with hold(run.folder, "run", patience=60):
        write_atomic(run.summary_path, json.dumps(summary, indent=2) + "\n")
    return summary


def tuned_thresholds(run: Run) -> list[dict[str, float]]:
    """The thresholds on the cards of a run's adapters: for each tuned fold `fold`, `min_size` and fields of decoding.

    That of all tiles comes last, with `ALL_TILES` for a fold.

    Raises:
        NucloraError: A card is damaged.
    """
    if run.recipe.dense is None:
        return []
    from nuclora.models.adapter import read_card

    cards = {fold: read_card(run.adapter_folder(fold)) for fold in _trained(run)}
    return [{"fold": fold, **card.thresholds} for fold, card in cards.items() if card.thresholds]


def _trained(run: Run) -> list[int]:
    return [fold for fold in (*run.folds.folds, ALL_TILES) if run.adapter_folder(fold).exists()]


def _input_size(run: Run) -> int | None:
    """Side of the network's input; of a custom base its adapters alone know it, none where there are none yet."""
    size, base = run.recipe.input.size, run.recipe.base
    if size is not None or base != "custom":
        return size or BASES[base].input_size
    from nuclora.models.adapter import read_card

    return next((read_card(run.adapter_folder(fold)).input_size for fold in _trained(run)), None)


def _entry(run: Run, stage: str, protocol: str, rows: Sequence[Row], before: Sequence[Row]) -> Entry:
    summary = summarise(rows).to_dict()
    # Of inner tiles a run scores one fold's.
    scored = run.folds.folds if run.recipe.evaluate.tiles == "test" else sorted({row["fold"] for row in rows})
    of_tiles = {fold: len(scored_tiles(run.folds, fold, run.recipe)) for fold in scored}
    folds = [{**fold, "of_tiles": of_tiles[fold["fold"]]} for fold in summary["folds"]]
    trust = calibration((run.evaluation_of(stage, protocol, row["fold"]), row) for row in rows)
    return {
        "recipe": run.recipe.name,
        "base": run.recipe.base,
        "stage": stage,
        "protocol": protocol,
        "seed": run.recipe.seed,
        "epochs": 0 if stage == ZERO_SHOT else run.recipe.train.epochs,
        "input_size": _input_size(run),
        "tiles": len(rows),
        "of_tiles": sum(of_tiles.values()),
        **summary,
        "folds": folds,
        "deviation": {
            metric: statistics.stdev(fold[metric] for fold in folds) if len(folds) > 1 else None
            for metric in summary["mean"]
        },
        "errors": {
            "nuclei": int(sum(row["nuclei_true"] for row in rows)),
            "predictions": int(sum(row["nuclei_predicted"] for row in rows)),
            **{kind: int(sum(row[kind] for row in rows)) for kind in ERROR_KINDS},
        },
        "gain": _gain(rows, before) if stage == FINE_TUNED else {},
        **({"calibration": trust} if trust else {}),
        "command": "; ".join(of_sessions(run, "command")) or None,
        "commit": ", ".join(of_sessions(run, "commit")) or None,
    }


def of_sessions(run: Run, key: str) -> list[str]:
    """What the sessions of a run say under a key, each thing once, in their order."""
    return list(dict.fromkeys(session[key] for session in run.info["sessions"] if session.get(key)))


def _gain(after: Sequence[Row], before: Sequence[Row]) -> dict[str, list[float | None]]:
    """Difference and the ends of its interval for each measure, over the tiles that both have."""
    both = {row["tile"] for row in after} & {row["tile"] for row in before}
    if not both:
        return {}
    mine, theirs = ([row for row in rows if row["tile"] in both] for rows in (after, before))
    return {metric: list(paired_difference(mine, theirs, metric)) for metric in METRICS}


def main_protocol(summary: Mapping[str, Any]) -> str | None:
    """The protocol that the report dwells on: of those on the most tiles `automatic`, or else the first.

    Returns:
        Its name; none if nothing fine-tuned is evaluated.
    """
    tiles: dict[str, int] = {
        entry["protocol"]: entry["tiles"] for entry in summary["results"] if entry["stage"] == FINE_TUNED
    }
    if not tiles:
        return None
    return max(tiles, key=lambda protocol: (tiles[protocol], protocol == "automatic"))


def protocol_label(protocol: str) -> str:
    """The protocol's name, with the warning that belongs to it where the truth gives the prompts."""
    return f"{protocol}\n{UPPER_BOUND}" if protocol.startswith("oracle") else protocol


def is_partial(entry: Mapping[str, Any]) -> bool:
    """Whether the entry lacks test tiles."""
    return bool(entry["tiles"] < entry["of_tiles"])


def is_comparable(summary: Mapping[str, Any]) -> bool:
    """Whether the published numbers are of the tiles that the summary's are of, and of folds of the same kind."""
    folds = len(summary["folds"]) == PUBLISHED_FOLDS and summary["dealt"] == "tile"
    return bool(summary["tiles"] == NUINSSEG_TILES and folds and summary["scored"] == "test")


def same_tiles_before(summary: Mapping[str, Any], tuned: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The zero-shot entry under the protocol of a fine-tuned one; none unless it is over the same tiles.

    Tiles are scored in one order, so as many of each fold and each organ are the same ones.
    """

    def tiles(entry: Mapping[str, Any]) -> tuple[dict[int, int], dict[str, int]]:
        by_fold = {fold["fold"]: fold["tiles"] for fold in entry["folds"]}
        return by_fold, {name: group["tiles"] for name, group in entry["groups"].items()}

    for entry in summary["results"]:
        if (entry["stage"], entry["protocol"]) == (ZERO_SHOT, tuned["protocol"]) and tiles(entry) == tiles(tuned):
            return dict(entry)
    return None


def scored_name(summary: Mapping[str, Any]) -> str:
    """What the scored tiles are called."""
    return "test tiles" if summary["scored"] == "test" else "inner validation tiles"


def print_table(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the results; under those of the whole NuInsSeg the study's and the field's rows, which compare.

    Args:
        console: Where to.
        summary: What :func:`summarise_run` returned.
    """
    from rich import box
    from rich.table import Table

    table = Table(
        title="mean of the folds ± their standard deviation, and the 95 % interval of the mean",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    # A terminal of 80 columns has room for no more than this.
    table.add_column("model, prompts", overflow="fold")
    table.add_column("tiles", justify="right", no_wrap=True)
    for title in METRICS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for entry in summary["results"]:
        table.add_row(
            f"{entry['stage']}, {protocol_label(entry['protocol'])}",
            f"{entry['tiles']}/{entry['of_tiles']}" if is_partial(entry) else str(entry["tiles"]),
            *(_cell(entry, metric) for metric in METRICS),
            style="bold" if entry["stage"] == FINE_TUNED else None,
            end_section=entry is summary["results"][-1],
        )
    if is_comparable(summary):
        for row in PUBLISHED:
            numbers = (f"{getattr(row, metric):.3f}" for metric in METRICS)
            table.add_row(f"{row.name} ({row.protocol})", str(NUINSSEG_TILES), *numbers, style="dim")
    console.print(table)


def _cell(entry: Mapping[str, Any], metric: str) -> str:
    deviation, ends = entry["deviation"][metric], entry["interval"][metric]
    spread = f" ± {deviation:.3f}" if deviation is not None else ""
    interval = f"[{ends[0]:.3f}, {ends[1]:.3f}]".replace("0.", ".") if ends else "–"
    return f"{entry['mean'][metric]:.3f}{spread}\n{interval}"
