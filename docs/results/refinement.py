"""Does SAM's mask decoder, prompted with the dense decoder's nuclei, draw them better? On inner validation tiles.

python docs/results/refinement.py RUN FOLD [--weights FILE] [--tiles N]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from common import MEASURES, inner_tiles, told
from nuclora.data.prompts import inner_points, label_boxes
from nuclora.inference.loading import load_model
from nuclora.inference.merge import masks_to_labels
from nuclora.metrics import score
from nuclora.run import Run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("fold", type=int)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--tiles", type=int, default=24)
    asked = parser.parse_args()
    run = Run(asked.run)
    predictor = load_model(run.adapter_folder(asked.fold), weights=asked.weights, precision=run.recipe.train.precision)

    rows: dict[str, list[list[float]]] = {"dense": [], "boxes": [], "points": [], "boxes from the truth": []}
    for tile in inner_tiles(run, asked.fold, asked.tiles):
        sample = tile.read()
        found = predictor.nuclei(sample.image).labels
        encoded = predictor.encode(sample.image)
        drawn = {
            "boxes": predictor.masks(encoded, boxes=label_boxes(found)[1]),
            "points": predictor.masks(encoded, points=inner_points(found)),
            "boxes from the truth": predictor.masks(encoded, boxes=label_boxes(sample.labels)[1]),
        }
        labels = {"dense": found} | {
            way: masks_to_labels(masks, encoded.shape, overlaps="logit", min_size=predictor.settings.min_size)
            for way, masks in drawn.items()
        }
        for way, of_way in labels.items():
            measures = score(sample.labels, of_way, sample.ignore)
            rows[way].append([measures[name] for name in MEASURES])

    gain = np.array(rows["boxes"]) - np.array(rows["dense"])
    half = 1.96 * gain.std(0) / len(gain) ** 0.5
    result = {way: dict(zip(MEASURES, np.mean(values, 0).tolist(), strict=True)) for way, values in rows.items()}
    result["boxes less dense"] = {
        name: [mean, interval] for name, mean, interval in zip(MEASURES, gain.mean(0), half, strict=True)
    }
    print(json.dumps({"tiles": len(gain), **result}, indent=1))


if __name__ == "__main__":
    told(main)
