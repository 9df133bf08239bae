"""Gather the numbers of a run, and of evaluations beside it, into one file; see study.json.

python docs/results/collect.py RUN [EVALUATION ...] > docs/results/study.json
python docs/results/collect.py RUN [EVALUATION ...] > docs/results/nuinsseg.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from common import told
from nuclora.evaluation import Evaluation
from nuclora.report.reliability import calibration
from nuclora.run import Run

KEYS = (
    "recipe",
    "base",
    "stage",
    "protocol",
    "seed",
    "epochs",
    "input_size",
    "tiles",
    "of_tiles",
    "interval",
    "gain",
    "errors",
    "groups",
)
MEASURES = ("dice", "aji", "pq", "aji_plus", "dq", "sq", "f1", "msa", "count_error")


def scores(row: dict) -> dict:
    return {key: row[key] for key in ("fold", "tiles", *MEASURES) if key in row}


def sessions_of(folder: Path) -> list[dict]:
    sessions = json.loads((folder / "run.json").read_text())["sessions"]
    return [{key: session[key] for key in ("started", "commit", "command")} for session in sessions]


def from_run(folder: Path) -> list[dict]:
    Run(folder)  # Refuses what is none.
    sessions = sessions_of(folder)
    summary = json.loads((folder / "summary.json").read_text())
    return [
        {
            **{key: entry[key] for key in KEYS},
            **of_the_dense_decoder(entry, summary),
            "folds": [scores(row) for row in entry["folds"]],
            "mean": scores(entry["mean"]),
            "command": entry["command"],
            "commit": entry["commit"],
            "sessions": sessions,
        }
        for entry in summary["results"]
    ]


def of_the_dense_decoder(entry: dict, summary: dict) -> dict:
    """What only nuclei with scores have: how far to trust these, and the thresholds that found the nuclei."""
    if "calibration" not in entry:
        return {}
    return {"calibration": entry["calibration"], "thresholds": summary["thresholds"]}


def from_evaluation(folder: Path, run_entry: dict) -> list[dict]:
    """Entries of `nuclora evaluate`, on the run's own tiles, with what differs from the run's settings."""
    summary = json.loads((folder / "summary.json").read_text())
    tuned = any("adapter_sha256" in model for model in summary["models"].values())
    return [
        {
            **{key: run_entry[key] for key in ("recipe", "seed", "of_tiles")},
            "base": said_once({fold: model["base"] for fold, model in summary["models"].items()}),
            "input_size": summary["input_size"] or run_entry["input_size"],
            "stage": "fine-tuned" if tuned else "zero-shot",
            "epochs": run_entry["epochs"] if tuned else 0,
            "protocol": protocol,
            "settings": said_once(summary["settings"]),
            "tiles": entry["tiles"],
            "interval": entry["interval"],
            **trust(Evaluation(folder / protocol)),
            "folds": [scores(row) for row in entry["folds"]],
            "mean": scores(entry["mean"]),
            "command": summary["session"]["command"],
            "commit": summary["session"]["commit"],
        }
        for protocol, entry in summary["protocols"].items()
    ]


def said_once(settings: dict) -> dict | str:
    """What is said of the folds, by fold only where they differ; older evaluations had one for all."""
    first, *others = settings.values()
    return first if isinstance(first, dict | str) and all(other == first for other in others) else settings


def trust(evaluation: Evaluation) -> dict:
    found = calibration((evaluation, row) for row in evaluation.rows)
    return {"calibration": found} if found else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("evaluations", type=Path, nargs="*")
    asked = parser.parse_args()
    entries = from_run(asked.run)
    tuned = next((entry for entry in entries if entry["stage"] == "fine-tuned"), entries[0])
    for evaluation in asked.evaluations:
        entries += from_evaluation(evaluation, tuned)
    json.dump(entries, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    told(main)
