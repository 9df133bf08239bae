"""Compare runs on the test tiles that all of them have scored, tile by tile.

python docs/results/paired.py REFERENCE_RUN RUN ... [--tiles TILES.csv] > docs/results/leave-organ-out.json

The runs are of `nuclora cv DATA ...`. Differences are to the first run, with 95 % intervals, paired by tile and
summarised over a run's own folds, all together and fold by fold. `--tiles` takes the last run's measures,
a line a tile.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

from collect import sessions_of

from common import told
from nuclora.evaluation import Row
from nuclora.machine import environment
from nuclora.metrics.aggregate import Summary, paired_difference, summarise
from nuclora.run import Run

MEASURES = ("dice", "aji", "pq")
ERRORS = ("missed", "merged", "split", "false")


def compared(runs: list[Run], protocol: str) -> list[dict]:
    rows = [run.rows("fine-tuned", protocol) for run in runs]
    common = set.intersection(*({row["tile"] for row in own} for own in rows))
    rows = [[row for row in own if row["tile"] in common] for own in rows]
    return [entry(run, own, rows[0]) for run, own in zip(runs, rows, strict=True)]


def entry(run: Run, rows: list[Row], reference: list[Row]) -> dict:
    summary = summarise(rows)
    return {
        "run": run.folder.name,
        "sessions": sessions_of(run.folder),
        **comparison(rows, reference, summary),
        "folds": {str(fold): of_fold(fold, rows, reference) for fold in sorted({row["fold"] for row in rows})},
        "groups": {
            group: {name: found[name] for name in ("tiles", *MEASURES)} for group, found in summary.groups.items()
        },
        "predictions": sum(row["nuclei_predicted"] for row in rows),
    }


def comparison(rows: list[Row], reference: list[Row], summary: Summary) -> dict:
    return {
        "tiles": len(rows),
        "mean": {name: summary.mean[name] for name in MEASURES},
        "interval": {name: summary.interval[name] for name in MEASURES},
        "nuclei": sum(row["nuclei_true"] for row in rows),
        "errors": {kind: sum(row[kind] for row in rows) for kind in ERRORS},
        "difference": {name: list(paired_difference(rows, reference, name)) for name in MEASURES},
    }


def of_fold(fold: int, rows: list[Row], reference: list[Row]) -> dict:
    """One fold of a run, beside the same tiles of the reference, whose own folds may be others."""
    own = [row for row in rows if row["fold"] == fold]
    tiles = {row["tile"] for row in own}
    beside = [{**row, "fold": fold} for row in reference if row["tile"] in tiles]
    return {
        **comparison(own, beside, summarise(own)),
        "reference": {name: summarise(beside).mean[name] for name in MEASURES},
    }


def write_tiles(path: Path, run: Run, protocols: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("fold", "tile", "protocol", *MEASURES))
        for protocol in protocols:
            for row in run.rows("fine-tuned", protocol):
                writer.writerow((row["fold"], row["tile"], protocol, *(f"{row[name]:.6f}" for name in MEASURES)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--tiles", type=Path)
    args = parser.parse_args()
    runs = [Run(folder) for folder in args.runs]
    session = environment()
    protocols = {protocol: compared(runs, protocol) for protocol in runs[0].recipe.evaluate.protocols}
    for protocol, entries in protocols.items():
        for found in entries:
            print(protocol, found["run"], found["mean"], found["difference"], file=sys.stderr)
    if args.tiles:
        write_tiles(args.tiles, runs[-1], list(protocols))
    json.dump({"command": session["command"], "commit": session["commit"], **protocols}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    told(main)
