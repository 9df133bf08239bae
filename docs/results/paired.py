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
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from collect import sessions_of

from common import MEASURES, told
from nuclora.evaluation import Row
from nuclora.machine import environment
from nuclora.metrics.aggregate import Summary, paired_difference, summarise
from nuclora.report.reliability import calibration
from nuclora.run import Run

STAGE = "fine-tuned"
ERRORS = ("missed", "merged", "split", "false")


@dataclass(frozen=True)
class Scored:
    """Tiles of a run that a protocol has scored."""

    run: Run
    protocol: str
    rows: list[Row]

    def on(self, tiles: Collection[str]) -> Scored:
        return replace(self, rows=[row for row in self.rows if row["tile"] in tiles])

    def found(self) -> dict:
        """How many nuclei were found and, where they have scores, how far these are from the IoU that they promise."""
        found = calibration((self.run.evaluation_of(STAGE, self.protocol, row["fold"]), row) for row in self.rows)
        return {
            "predictions": sum(row["nuclei_predicted"] for row in self.rows),
            **({"calibration_error": found["error"]} if found else {}),
        }


def compared(runs: list[Run], protocol: str) -> list[dict]:
    scored = [Scored(run, protocol, run.rows(STAGE, protocol)) for run in runs]
    common = set.intersection(*({row["tile"] for row in one.rows} for one in scored))
    reference, *others = [one.on(common) for one in scored]
    return [entry(one, reference) for one in (reference, *others)]


def entry(one: Scored, reference: Scored) -> dict:
    summary = summarise(one.rows)
    return {
        "run": one.run.folder.name,
        "sessions": sessions_of(one.run.folder),
        **comparison(one.rows, reference.rows, summary),
        **one.found(),
        "folds": {str(fold): of_fold(fold, one, reference) for fold in sorted({row["fold"] for row in one.rows})},
        "groups": {
            group: {name: found[name] for name in ("tiles", *MEASURES)} for group, found in summary.groups.items()
        },
    }


def comparison(rows: list[Row], reference: list[Row], summary: Summary) -> dict:
    return {
        "tiles": len(rows),
        "mean": {name: summary.mean[name] for name in MEASURES},
        "interval": {name: summary.interval[name] for name in MEASURES},
        "nuclei": sum(row["nuclei_true"] for row in rows),
        "errors": errors(rows),
        "difference": {name: list(paired_difference(rows, reference, name)) for name in MEASURES},
    }


def errors(rows: list[Row]) -> dict:
    return {kind: sum(row[kind] for row in rows) for kind in ERRORS}


def of_fold(fold: int, one: Scored, reference: Scored) -> dict:
    """One fold of a run, and the reference on the same tiles, whose own folds may be others."""
    tiles = {row["tile"] for row in one.rows if row["fold"] == fold}
    own, beside = one.on(tiles), reference.on(tiles)
    rows = [{**row, "fold": fold} for row in beside.rows]
    mean = summarise(rows).mean
    return {
        **comparison(own.rows, rows, summarise(own.rows)),
        **own.found(),
        "reference": {
            "mean": {name: mean[name] for name in MEASURES},
            "errors": errors(rows),
            **beside.found(),
        },
    }


def write_tiles(path: Path, run: Run, protocols: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("fold", "tile", "protocol", *MEASURES))
        rows = [(row["fold"], at, row) for at, name in enumerate(protocols) for row in run.rows(STAGE, name)]
        for fold, at, row in sorted(rows, key=lambda found: found[:2]):
            writer.writerow((fold, row["tile"], protocols[at], *(f"{row[name]:.6f}" for name in MEASURES)))


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
