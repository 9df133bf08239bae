"""How well adapters bear other colours: inner validation tiles of a fold, recoloured, and with specks.

python docs/results/colours.py FOLD REFERENCE_RUN RUN ... [--every 3] > docs/results/colours.json

The runs are of `nuclora train DATA --fold FOLD --no-evaluate ...`, with the same folds and seed. All are decoded with
the thresholds of their recipes, in one view; differences to the first run are paired by tile. No colour here is made by
the code that changes colours in training.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from paired import comparison
from skimage.color import hsv2rgb, rgb2gray, rgb2hsv

from common import inner_tiles, told
from nuclora.inference.evaluate import score_tile
from nuclora.inference.loading import load_model
from nuclora.machine import environment
from nuclora.metrics.aggregate import summarise
from nuclora.run import Run

Image = NDArray[np.uint8]


def pixels(shares: NDArray[np.float64]) -> Image:
    return np.rint(255 * shares.clip(0, 1)).astype(np.uint8)


def denser(image: Image, factor: float) -> Image:
    return pixels((image / 255) ** factor)


def turned(image: Image, degrees: float) -> Image:
    hues = rgb2hsv(image)
    hues[..., 0] = (hues[..., 0] + degrees / 360) % 1
    return pixels(hsv2rgb(hues))


def specked(image: Image) -> Image:
    """With a black and a white speck in two corners, as of ink and of a hole."""
    changed = image.copy()
    changed[:8, :8], changed[-8:, -8:] = 0, 255
    return changed


COLOURS: dict[str, Callable[[Image], Image]] = {
    "as it is": lambda image: image,
    "half as dense": lambda image: denser(image, 0.5),
    "1.5 times as dense": lambda image: denser(image, 1.5),
    "grey": lambda image: np.repeat(pixels(rgb2gray(image))[..., None], 3, axis=2),
    "pink made purple, purple blue": lambda image: turned(image, -60),
    "pink made orange, purple red": lambda image: turned(image, 60),
    "a black and a white speck": specked,
}


def scored(run: Run, fold: int, every: int) -> dict[str, list[dict]]:
    predictor = load_model(run.adapter_folder(fold), precision=run.recipe.train.precision)
    settings = run.recipe.evaluate.with_views(1)
    rows: dict[str, list[dict]] = {colour: [] for colour in COLOURS}
    for tile in list(inner_tiles(run, fold))[::every]:
        sample = tile.read()
        for colour, change in COLOURS.items():
            found = score_tile(sample, predictor.nuclei(change(sample.image), settings).labels)
            rows[colour].append({"tile": tile.name, "group": tile.group, "fold": fold} | found)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("fold", type=int)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--every", type=int, default=1, help="take every so many-th inner tile")
    asked = parser.parse_args()
    entries = []
    reference: dict[str, list[dict]] = {}
    for folder in asked.runs:
        run = Run(folder)
        rows = scored(run, asked.fold, asked.every)
        reference = reference or rows
        found = {colour: comparison(rows[colour], reference[colour], summarise(rows[colour])) for colour in COLOURS}
        session = run.info["sessions"][0]
        entries.append(
            {"run": folder.name, "command": session["command"], "commit": session["commit"], "colours": found}
        )
        for colour, result in found.items():
            print(folder.name, colour, result["mean"], result["difference"], file=sys.stderr)
    session = environment()
    json.dump({"command": session["command"], "commit": session["commit"], "runs": entries}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    told(main)
