"""Compare adapters on the inner validation tiles of their fold, to choose a recipe; no test tile is read.

python docs/results/screening.py FOLD REFERENCE_RUN RUN ... [--weights FILE] > docs/results/screening.json

The runs are of `nuclora train DATA --fold FOLD --no-evaluate ...`, with the same folds and seed. All are decoded with
the thresholds of their recipes; differences to the first run are paired by tile.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from paired import comparison

from common import inner_tiles, told
from nuclora.inference.evaluate import score_tile
from nuclora.inference.loading import load_model
from nuclora.machine import environment
from nuclora.metrics.aggregate import summarise
from nuclora.run import Run


def scored(run: Run, fold: int, weights: Path | None) -> list[dict]:
    predictor = load_model(run.adapter_folder(fold), weights=weights, precision=run.recipe.train.precision)
    rows = []
    for tile in inner_tiles(run, fold):
        sample = tile.read()
        found = score_tile(sample, predictor.nuclei(sample.image, run.recipe.evaluate).labels)
        rows.append({"tile": tile.name, "group": tile.group, "fold": fold} | found)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("fold", type=int)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--weights", type=Path)
    asked = parser.parse_args()
    entries = []
    reference: list[dict] = []
    for folder in asked.runs:
        run = Run(folder)
        rows = scored(run, asked.fold, asked.weights if run.recipe.base == "mobile_sam" else None)
        reference = reference or rows
        steps = [record for record in run.training_records(asked.fold) if record["kind"] == "step"]
        session = run.info["sessions"][-1]
        entries.append(
            {
                "run": folder.name,
                "command": session["command"],
                "commit": session["commit"],
                "steps": len(steps),
                **comparison(rows, reference, summarise(rows)),
            }
        )
        print(folder.name, entries[-1]["mean"], entries[-1]["difference"], file=sys.stderr)
    session = environment()
    json.dump({"command": session["command"], "commit": session["commit"], "runs": entries}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    told(main)
