"""Score prompts on pieces and mosaics of a fold's test tiles: enlarged as in training, and stretched to the input.

python docs/results/enlargement.py RUN FOLD DATA [--weights FILE] > docs/results/enlargement.json

Pieces are the upper left quarters of 24 tiles, mosaics four tiles each, two by two. Until commit 10ff3b6 every image
was stretched to the network's input to be prompted, whatever its size; from then to 5ebf13b every one was enlarged as
in training, which is what this script compares. Since then only smaller ones are.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from common import MEASURES, told
from nuclora.data import open_tiles
from nuclora.data.tiles import Sample
from nuclora.inference.evaluate import score_tile
from nuclora.inference.loading import load_model
from nuclora.inference.protocols import segment
from nuclora.machine import environment
from nuclora.run import Run

TILES = 24
PROTOCOLS = ("oracle-box", "oracle-point")


def piece(sample: Sample) -> Sample:
    """The upper left quarter."""
    height, width = (side // 2 for side in sample.labels.shape)
    return Sample(*(np.ascontiguousarray(plane[:height, :width]) for plane in planes(sample)))


def mosaic(samples: list[Sample]) -> Sample:
    """Four tiles of one size, two by two."""
    first = np.cumsum([0, *(int(sample.labels.max()) for sample in samples)])
    moved = [
        Sample(image, np.where(labels > 0, labels + start, 0).astype(np.int32), ignore)
        for (image, labels, ignore), start in zip(map(planes, samples), first, strict=False)
    ]
    rows = zip(*map(planes, moved), strict=True)
    return Sample(*(np.vstack([np.hstack(row[:2]), np.hstack(row[2:])]) for row in rows))


def planes(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return sample.image, sample.labels, sample.ignore


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("fold", type=int)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    options = parser.parse_args()
    run = Run(options.run)
    names = [row.tile for row in run.folds.rows if row.fold == options.fold]
    chosen = np.random.default_rng(0).choice(len(names), TILES, replace=False)
    samples = [tile.read() for tile in open_tiles(options.data).subset([names[index] for index in chosen])]
    sets = {
        "quarters": ([piece(sample) for sample in samples], 2),
        "mosaics of four": ([mosaic(samples[index : index + 4]) for index in range(0, TILES, 4)], 1 / 2),
    }
    results = []
    adapter = run.adapter_folder(options.fold)
    trained = load_model(adapter, weights=options.weights).input_size
    for name, (images, factor) in sets.items():
        for shown, size in (("as in training", trained), ("stretched to the input", round(trained * factor))):
            model = load_model(adapter, weights=options.weights, input_size=size)
            for protocol in PROTOCOLS:
                rows = [
                    score_tile(image, segment(model, model.encode(image.image), image.labels, protocol, model.settings))
                    for image in images
                ]
                means = {measure: float(np.mean([row[measure] for row in rows])) for measure in MEASURES}
                results.append({"images": name, "count": len(images), "shown": shown, "protocol": protocol, **means})
                print(*results[-1].values(), file=sys.stderr)
    print(
        json.dumps(
            {"session": environment(), "run": run.folder.name, "fold": options.fold, "results": results}, indent=1
        )
    )


if __name__ == "__main__":
    told(main)
