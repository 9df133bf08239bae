"""The words and tables of a report: what was run, how far it got, and what its numbers may be used for."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nuclora.data.folds import ALL_TILES, fold_name, inner_split, scored_tiles
from nuclora.report.published import METRICS, NUINSSEG_TILES
from nuclora.report.summary import is_comparable, is_partial, main_protocol, of_sessions, same_tiles_before, scored_name
from nuclora.run import FINE_TUNED, Run

if TYPE_CHECKING:
    from nuclora.models.parameters import ParameterTable

Rows = list[dict[str, Any]]

PART_NAMES: Final = {
    "base": "Base as published",
    "adapter": "LoRA",
    "dense_decoder": "Dense decoder",
    "mask_decoder": "Mask decoder (of the base)",
    "prompt_encoder": "Prompt encoder (of the base)",
    "neck": "Neck of the image encoder (of the base)",
    "convolutions": "Convolutions of the image encoder (of the base)",
    "vision_encoder": "Image encoder (of the base)",
}


def subtitle(run: Run, summary: Mapping[str, Any]) -> str:
    """One line: data, folds, seed, input, epochs, date."""
    recipe = run.recipe
    groups = len({row.group for row in run.folds.rows})
    parts = [
        f"{summary['tiles']} tiles of {groups} organs" if groups > 1 else f"{summary['tiles']} tiles",
        f"{len(summary['folds'])} folds",
        f"seed {recipe.seed}",
        f"{recipe.train.epochs} epochs" if recipe.train.epochs > 1 else "1 epoch",
        f"last session {run.info['sessions'][-1]['started'][:10]}" if run.info["sessions"] else "",
    ]
    return " · ".join(part for part in parts if part)


def cards(summary: Mapping[str, Any], parameters: ParameterTable | None) -> list[dict[str, str]]:
    """The few numbers on top: final measures under the main protocol, and what was trained."""
    main = main_protocol(summary)
    if main is None:
        return _parameter_card(parameters)
    after = _fine_tuned(summary, main)
    before = same_tiles_before(summary, after)
    found: list[dict[str, str]] = []
    for metric, name in METRICS.items():
        ends = after["interval"][metric]
        details = [f"95 % interval {ends[0]:.3f} to {ends[1]:.3f}" if ends else "95 % interval –"]
        if before:
            details.append(f"zero-shot {before['mean'][metric]:.3f}")
        elif after["gain"]:
            details.append(f"{after['gain'][metric][0]:+.3f} from zero-shot on the same tiles")
        value = f"{after['mean'][metric]:.3f}"
        found.append({"name": f"{name}, {main}", "value": value, "detail": "; ".join(details)})
    nuclei, tiles = after["errors"]["nuclei"], after["tiles"]
    detail = f"true nuclei in {tiles} {scored_name(summary)}, outside vague areas"
    found.append({"name": "Scored", "value": f"{nuclei:,}", "detail": detail})
    return found + _parameter_card(parameters)


def _fine_tuned(summary: Mapping[str, Any], protocol: str) -> Mapping[str, Any]:
    """The fine-tuned entry under a protocol that has one."""
    return next(e for e in summary["results"] if (e["stage"], e["protocol"]) == (FINE_TUNED, protocol))


def _parameter_card(parameters: ParameterTable | None) -> list[dict[str, str]]:
    if parameters is None:
        return []
    detail = f"{parameters.trainable:,} of {parameters.total:,} parameters"
    return [{"name": "Trained", "value": f"{100 * parameters.share:.2f} %", "detail": detail}]


def partial_notes(run: Run, summary: Mapping[str, Any]) -> list[str]:
    """What is missing, in words; nothing of a whole run."""
    notes = []
    trained = [fold for fold in summary["folds"] if run.adapter_folder(fold).exists()]
    if not trained and not summary["results"] and run.adapter_folder(ALL_TILES).exists():
        return [
            "This adapter was trained on all tiles, so none is left that could say how good it is. `nuclora cv` with "
            "the same settings tests the recipe, on tiles held out fold by fold."
        ]
    # Of inner tiles a run scores one fold.
    if len(trained) < (len(summary["folds"]) if summary["scored"] == "test" else 1):
        done = ", ".join(map(str, trained)) or "none"
        notes.append(
            f"This run is not finished. Folds trained so far: {done}, of {len(summary['folds'])}. {_goes_on(run)}"
        )
    tuned = [entry for entry in summary["results"] if entry["stage"] == FINE_TUNED]
    if not tuned:
        notes.append("No fine-tuned adapter is evaluated yet.")
    else:
        # Where a kill came before a protocol began, it has no entry.
        begun = {entry["protocol"] for entry in tuned}
        lacking = [protocol for protocol in run.recipe.evaluate.protocols if protocol not in begun]
        tiles = f"0 of {tuned[0]['of_tiles']} {scored_name(summary)}"
        notes += [f"{protocol}, {FINE_TUNED}: {tiles}." for protocol in lacking]
    for protocol in dict.fromkeys(entry["protocol"] for entry in summary["results"]):
        coverage: dict[str, list[str]] = {}
        for entry in summary["results"]:
            if entry["protocol"] == protocol and is_partial(entry):
                coverage.setdefault(_coverage(entry, summary), []).append(entry["stage"])
        limit = run.recipe.evaluate.automatic_tiles
        cause = f"; the recipe asks for at most {limit} a fold" if protocol == "automatic" and limit else ""
        notes += [f"{protocol}, {' and '.join(stages)}: {covered}{cause}." for covered, stages in coverage.items()]
    return notes


def _goes_on(run: Run) -> str:
    """What goes on with a run whose folds are not all trained."""
    words = run.info["sessions"][-1]["command"].split() if run.info["sessions"] else []
    if "train" in words[:2]:
        return "`nuclora cv` with the same settings goes on with it."
    if any(word.partition("=")[0] == "--folds" for word in words):
        return "The same command without --folds goes on with it."
    return "The same command goes on with it."


def _coverage(entry: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """How many of the scored tiles an entry has, in all and by fold."""
    text = f"{entry['tiles']} of {entry['of_tiles']} {scored_name(summary)}"
    counts = {fold["fold"]: fold["tiles"] for fold in entry["folds"]}
    if len(set(counts.values())) == 1 and len(counts) == len(summary["folds"]):
        return f"{text}, {entry['folds'][0]['tiles']} of each fold"
    return f"{text}, " + ", ".join(f"{count} of fold {fold}" for fold, count in counts.items())


def comparison(summary: Mapping[str, Any]) -> str:
    """How far our numbers and the published ones may be compared."""
    text = (
        f"The published numbers are means of five random folds of the {NUINSSEG_TILES} NuInsSeg tiles. Rows with "
        "different prompts at test time do not measure the same thing: prompts taken from the truth tell a model where "
        "each nucleus is, so such rows are upper bounds, and the study does not say where its prompts came from."
    )
    if summary["scored"] != "test":
        text += " This run scores inner validation tiles: its numbers and the published ones do not compare."
    elif summary["tiles"] == NUINSSEG_TILES and not is_comparable(summary):
        text += (
            f" This run has {len(summary['folds'])} folds by {summary['dealt']}, not such ones: its numbers and the "
            "published ones do not compare."
        )
    elif not is_comparable(summary):
        text += f" This run has {summary['tiles']} tiles, not those: its numbers and the published ones do not compare."
    elif any(map(is_partial, summary["results"])):
        text += " Rows of this run on a part of the tiles compare only roughly."
    return text


def empty_note(run: Run, summary: Mapping[str, Any]) -> str:
    """How many of the main protocol's tiles have no nuclei, and what they count for; nothing where all have some."""
    main = main_protocol(summary)
    rows = run.rows(FINE_TUNED, main) if main else []
    empty = sum(not row["nuclei_true"] for row in rows)
    if not empty:
        return ""
    return (
        f"{empty} of {len(rows)} tiles have no true nuclei: there each measure is 1 without predictions and 0 with any."
    )


def organs(summary: Mapping[str, Any]) -> Rows:
    """Scores of each organ under the main protocol, best AJI first; nothing where nothing is fine-tuned."""
    main = main_protocol(summary)
    if main is None:
        return []
    after = _fine_tuned(summary, main)
    before = same_tiles_before(summary, after)
    rows = [
        {"name": name, "before": before["groups"][name] if before else None, **scores}
        for name, scores in after["groups"].items()
    ]
    return sorted(rows, key=lambda row: -row["aji"])


def trust(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `calibration` of the entry that has one; it can only be `automatic` and fine-tuned."""
    return next((entry["calibration"] for entry in summary["results"] if "calibration" in entry), None)


def validation_note(run: Run, summary: Mapping[str, Any]) -> str:
    """Whether the test tiles had a part in choosing anything."""
    settings = run.recipe.train
    if settings.validate_on == "test":
        return (
            "As the study did, this recipe validates on the test tiles of the fold. Nothing is chosen by it: the final "
            "figures are those of the last epoch, whatever the curves below say. Picking the best epoch from these "
            "curves would be choosing on the test tiles."
        )
    if summary["scored"] == "inner":
        return (
            "All figures are those of inner validation tiles, an eighth of the fold's training tiles that is not "
            "trained on. They are for choosing a recipe, and no measure of it: no test tile was read."
        )
    chosen = "the checkpoint with the best PQ on them" if settings.select == "best" else "the last epoch"
    tuned = " The thresholds of decoding were tuned on the same tiles." if summary["thresholds"] else ""
    tested = any(entry["stage"] == FINE_TUNED for entry in summary["results"])
    final = f" The final figures are those of {chosen}; the test tiles were read once, at the end." if tested else ""
    return (
        "Validation during training is on inner validation tiles, an eighth of the fold's training tiles that is not "
        f"trained on.{tuned}{final}"
    )


def training(run: Run) -> Rows:
    """How far each fold's training got: one row a fold that has begun."""
    rows = []
    table = run.folds
    on_test = run.recipe.train.validate_on == "test"
    for fold in (*table.folds, ALL_TILES):
        records = run.training_records(fold)
        steps = [record for record in records if record["kind"] == "step"]
        if not steps:
            continue
        epochs = [record["loss"] for record in records if record["kind"] == "epoch"]
        seconds = sum(record["seconds"] for record in steps)
        rows.append(
            {
                "fold": fold if fold != ALL_TILES else fold_name(fold),
                "train": len(table.train(fold) if on_test else inner_split(table, fold, seed=run.recipe.seed)[0]),
                "test": len(scored_tiles(table, fold, run.recipe)) if fold != ALL_TILES else "–",
                "steps": steps[-1]["step"],
                "epoch": steps[-1]["epoch"],
                "epochs": run.recipe.train.epochs,
                "time": f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min",
                "memory": f"{max(record['memory_mb'] for record in steps) / 1000:.1f} GB",
                "first_loss": f"{epochs[0]:.4f}" if epochs else "–",
                "last_loss": f"{epochs[-1]:.4f}" if epochs else "–",
                "state": "trained" if run.adapter_folder(fold).exists() else "in training",
            }
        )
    return rows


def parameters(run: Run) -> ParameterTable | None:
    """Parameters of the adapted base by part; none of a custom base whose folder is gone."""
    from nuclora.models.parameters import count_recipe

    folder = Path(run.info["base_path"])
    if run.recipe.base == "custom" and not folder.exists():
        return None
    return count_recipe(run.recipe, folder)


def sessions_note(run: Run) -> str:
    """How often the run was taken up again, in words."""
    count = len(run.info["sessions"])
    if count <= 1:
        return "The run was made in one session, without a break."
    commits, precisions = of_sessions(run, "commit"), of_sessions(run, "precision")
    others = [f"{len(commits)} commits"] * (len(commits) > 1) + [" and ".join(precisions)] * (len(precisions) > 1)
    return (
        f"The run was taken up {count} times: each session after the first went on from what was on disk, from the "
        "last checkpoint or the last scored tile. "
    ) + (
        f"They are of {', in '.join(others)}: the numbers are those of no single session."
        if others
        else "An interrupted run ends with the numbers of an unbroken one."
    )


def hashes(run: Run) -> dict[str, str]:
    """What the run is made from, by hash."""
    return {
        f"base {run.info['base']['name']}": run.info["base"]["sha256"],
        "recipe": run.recipe.sha256,
        "fold table": run.info["folds_sha256"],
    }


def commands(run: Run) -> list[str]:
    """The distinct command lines of the sessions, and the one of the report."""
    return [*of_sessions(run, "command"), f"nuclora report {shlex.quote(str(run.folder))}"]
