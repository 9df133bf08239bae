"""Compare runs on the test tiles that all of them have scored, tile by tile.

python docs/results/paired.py REFERENCE_RUN RUN ... > docs/results/leave-organ-out.json

The runs are of `nuclora cv DATA ...` with the same folds. Differences are to the first run, with 95 % intervals.
"""

from __future__ import annotations

import argparse
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
        "interval": {name: summary.interval[name] for name in MEASURES},
        "groups": {
            group: {name: found[name] for name in ("tiles", *MEASURES)} for group, found in summary.groups.items()
        },
        "predictions": sum(row["nuclei_predicted"] for row in rows),
    }


def comparison(rows: list[Row], reference: list[Row], summary: Summary) -> dict:
    return {
        "tiles": len(rows),
        "mean": {name: summary.mean[name] for name in MEASURES},
        "nuclei": sum(row["nuclei_true"] for row in rows),
        "errors": {kind: sum(row[kind] for row in rows) for kind in ERRORS},
        "difference": {name: list(paired_difference(rows, reference, name)) for name in MEASURES},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    runs = [Run(folder) for folder in parser.parse_args().runs]
    session = environment()
    protocols = {protocol: compared(runs, protocol) for protocol in runs[0].recipe.evaluate.protocols}
    for protocol, entries in protocols.items():
        for found in entries:
            print(protocol, found["run"], found["mean"], found["difference"], file=sys.stderr)
    json.dump({"command": session["command"], "commit": session["commit"], **protocols}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    told(main)
