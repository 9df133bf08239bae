"""What the adapter in the box finds where several sizes of a tile are averaged, beside the views of one size.

python docs/results/sizes.py TILES [--tiles N] [--sides 192 224 160+192+224 ...] > docs/results/sizes.json

A side is the sizes that a tile is shown at, in pixels of SAM's input, four views each. The tile itself is enlarged or
reduced by as much, as the training's zoom does. TILES is the set that the adapter was trained on; looked at are its
inner validation tiles, which chose its thresholds, for the recipe's one size, and trained nothing. Differences to the
first side are paired by tile, with 95 % intervals. On a CPU, in bfloat16 where the training's `auto` would take it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from common import told
from nuclora.data import open_tiles
from nuclora.data.folds import ALL_TILES, inner_split, make_folds
from nuclora.data.targets import OFFSETS, STRIDE
from nuclora.inference.evaluate import score_tile
from nuclora.inference.loading import load_model
from nuclora.inference.predictor import Maps, Predictor
from nuclora.inference.views import show, undo, views
from nuclora.machine import environment
from nuclora.metrics.aggregate import paired_difference, summarise
from nuclora.models.adapter import read_card, read_recipe, shipped_adapter
from nuclora.models.dense_decoder import activate
from nuclora.training.plan import thin

MEASURES = ("dice", "aji", "pq")
VIEWS = 4

Floats = NDArray[np.float32]


def seen_at(predictor: Predictor, image: NDArray[np.uint8], size: int) -> Floats:
    """The maps of each view of a square tile at a size, laid back on the tile: (4, 5, side / 2, side / 2)."""
    side, predictor_size = image.shape[0], predictor.input_size
    shown_side = STRIDE * round(side * size / predictor_size / STRIDE)
    shown = np.asarray(Image.fromarray(image).resize((shown_side, shown_side), Image.Resampling.BICUBIC))
    asked = views(VIEWS)
    predictor.input_size = size
    try:
        inputs = [predictor.window_inputs(show(shown, view)) for view in asked]
    finally:
        predictor.input_size = predictor_size
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=predictor.precision == "bf16")
    with torch.inference_mode(), autocast:
        raw = [activate(predictor.model(*one))[0].float().numpy() for one in inputs]
    maps = torch.from_numpy(np.stack([undo(one, view) for one, view in zip(raw, asked, strict=True)]))
    if shown_side != side:
        maps = torch.nn.functional.interpolate(maps, size=side // STRIDE, mode="bilinear", antialias=True)
        # Offsets are in pixels of what was shown.
        maps[:, OFFSETS] *= side / shown_side
    back: Floats = maps.numpy()
    return back


def averaged(seen: list[Floats]) -> Maps:
    """As :meth:`nuclora.inference.predictor.Predictor.window_planes` averages views."""
    every = np.concatenate(seen)
    mean = every.mean(0)
    return Maps(mean, np.hypot(*(every[:, OFFSETS] - mean[OFFSETS]).swapaxes(0, 1)).mean(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tiles", type=int)
    sides = ["192", "160", "224", "192+224", "160+192+224"]
    parser.add_argument("--sides", nargs="+", default=sides, metavar="SIZE[+SIZE...]")
    asked = parser.parse_args()
    sizes = {side: tuple(map(int, side.split("+"))) for side in asked.sides}
    adapter = shipped_adapter()
    recipe = read_recipe(adapter, read_card(adapter))
    predictor = load_model(adapter, device="cpu", precision="auto", prompts=False)
    predictor.model.eval()
    tiles = open_tiles(asked.data)
    names = thin(inner_split(make_folds(tiles, 5, recipe.seed), ALL_TILES, seed=recipe.seed)[1], asked.tiles)
    rows: dict[str, list[dict[str, Any]]] = {side: [] for side in sizes}
    for tile in tiles.subset(names):
        sample = tile.read()
        seen = {size: seen_at(predictor, sample.image, size) for size in sorted(set(sum(sizes.values(), ())))}
        for side, its_sizes in sizes.items():
            maps = averaged([seen[size] for size in its_sizes])
            height, width = sample.labels.shape
            labels = predictor.decode_maps(maps, (height, width), predictor.settings).labels
            rows[side].append({"tile": tile.name, "group": tile.group, "fold": ALL_TILES} | score_tile(sample, labels))
    reference = next(iter(rows.values()))
    entries = [
        {
            "sizes": list(sizes[side]), "views": VIEWS * len(sizes[side]), "tiles": len(found),
            "mean": {name: summarise(found).mean[name] for name in MEASURES},
            "difference": {name: paired_difference(found, reference, name) for name in MEASURES},
        }
        for side, found in rows.items()
    ]  # fmt: skip
    print(json.dumps({"session": environment(), "precision": predictor.precision, "sides": entries}, indent=1))


if __name__ == "__main__":
    told(main)
