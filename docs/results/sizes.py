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

from common import against, inner_tiles_of_all, told
from nuclora.data.folds import ALL_TILES
from nuclora.data.targets import MAPS, OFFSETS, STRIDE
from nuclora.inference.evaluate import score_tile
from nuclora.inference.loading import load_model
from nuclora.inference.predictor import Maps, Predictor
from nuclora.inference.views import average
from nuclora.machine import environment
from nuclora.models.adapter import shipped_adapter

VIEWS = 4

Floats = NDArray[np.float32]


def seen_at(predictor: Predictor, image: NDArray[np.uint8], scale: float) -> Floats:
    """The maps of each view of a square tile, enlarged by a scale, laid back on it: (4, 5, side / 2, side / 2)."""
    side = image.shape[0]
    shown_side = STRIDE * round(side * scale / STRIDE)
    shown = np.asarray(Image.fromarray(image).resize((shown_side, shown_side), Image.Resampling.BICUBIC))
    maps = torch.from_numpy(predictor.window_views(shown, VIEWS))
    if shown_side != side:
        maps = torch.nn.functional.interpolate(maps, size=side // STRIDE, mode="bilinear", antialias=True)
        # Offsets are in pixels of what was shown.
        maps[:, OFFSETS] *= side / shown_side
    back: Floats = maps.numpy()
    return back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tiles", type=int)
    sides = ["192", "160", "224", "192+224", "160+192+224"]
    parser.add_argument("--sides", nargs="+", default=sides, metavar="SIZE[+SIZE...]")
    asked = parser.parse_args()
    sizes = {side: tuple(map(int, side.split("+"))) for side in asked.sides}
    adapter = shipped_adapter()
    predictor = load_model(adapter, device="cpu", precision="auto", prompts=False)
    by_size = {
        size: load_model(adapter, device="cpu", precision="auto", prompts=False, input_size=size)
        for size in {size for several in sizes.values() for size in several}
    }
    rows: dict[str, list[dict[str, Any]]] = {side: [] for side in sizes}
    for tile in inner_tiles_of_all(asked.data, adapter, asked.tiles):
        sample = tile.read()
        seen = {size: seen_at(one, sample.image, size / predictor.input_size) for size, one in by_size.items()}
        for side, its_sizes in sizes.items():
            planes = average(np.concatenate([seen[size] for size in its_sizes]))
            maps = Maps(planes[: len(MAPS)], planes[len(MAPS)])
            height, width = sample.labels.shape
            labels = predictor.decode_maps(maps, (height, width), predictor.settings).labels
            rows[side].append({"tile": tile.name, "group": tile.group, "fold": ALL_TILES} | score_tile(sample, labels))
    reference = next(iter(rows.values()))
    entries = [
        {
            "sizes": list(sizes[side]), "views": VIEWS * len(sizes[side]), "tiles": len(found),
            **against(found, reference),
        }
        for side, found in rows.items()
    ]  # fmt: skip
    print(json.dumps({"session": environment(), "precision": predictor.precision, "sides": entries}, indent=1))


if __name__ == "__main__":
    told(main)
