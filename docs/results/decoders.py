"""Compare ways from the same maps to nuclei, on a fold's inner validation tiles (its test tiles are not read).

python docs/results/decoders.py RUN FOLD [--weights FILE] [--tiles N] > docs/results/decoders.json

Each way has a small grid of settings and the same two last filters, the package's `core` and `agreement`; it is judged
on half of the tiles with the settings that were best on the other half, both ways.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.morphology import reconstruction
from skimage.segmentation import watershed

from common import inner_tiles, told
from nuclora.inference.decode import _join, _whole, upsample
from nuclora.inference.loading import load_model
from nuclora.inference.scores import agreement, find_nuclei
from nuclora.machine import environment
from nuclora.metrics import OverlapTable, classify_errors, score
from nuclora.recipe import DecodeSettings
from nuclora.run import Run

MIN_SIZE = 20
FOREGROUND = 0.5
CORES = (0.3, 0.4)
AGREEMENTS = (0.0, 0.6)


def flooded(energy, seeds, inside):
    return watershed(-energy, seeds, mask=inside).astype(np.int32)


def components(mask):
    return ndimage.label(mask)[0]


def distance_threshold(planes, inside, threshold):
    return flooded(planes[2], components(inside & (planes[2] > threshold)), inside)


def distance_h_maxima(planes, inside, height, blur):
    energy = np.where(inside, ndimage.gaussian_filter(planes[2], blur), 0)
    lowered = reconstruction(energy - height, energy, method="dilation")
    tops = lowered - reconstruction(lowered - 1e-3, lowered, method="dilation") > 5e-4
    return flooded(energy, components(tops & inside), inside)


def distance_less_contact(planes, inside, threshold, contact):
    energy = planes[2] - contact * planes[1]
    return flooded(energy, components(inside & (energy > threshold)), inside)


def distance_less_contact_joined(planes, inside, valley, contact):
    # Raised by 1, so that a pass is a share of the lower peak.
    energy = ndimage.gaussian_filter(planes[2] - contact * planes[1], 2) + 1
    peaks = (ndimage.maximum_filter(energy, 5) == energy) & inside
    return _join(flooded(energy, components(peaks), inside), energy.astype(np.float32), valley)


def offset_slopes(planes, inside, threshold, blur):
    """HoVer-Net's way (Graham et al. 2019): an offset falls by 1 a pixel inside a nucleus and jumps at its border."""
    slopes = np.maximum(
        ndimage.gaussian_filter(planes[3], blur, order=(1, 0)), ndimage.gaussian_filter(planes[4], blur, order=(0, 1))
    )
    core = -slopes
    return flooded(core, components(inside & (core > threshold)), inside)


WAYS: dict[str, tuple[Callable, dict[str, tuple]]] = {
    "distance over a threshold": (distance_threshold, {"threshold": (0.4, 0.5, 0.6)}),
    "h-maxima of the distance": (distance_h_maxima, {"height": (0.05, 0.1, 0.2), "blur": (1.0, 2.0)}),
    "distance less contact": (distance_less_contact, {"threshold": (0.2, 0.3, 0.4), "contact": (0.3, 0.5)}),
    "distance less contact, peaks joined": (
        distance_less_contact_joined,
        {"valley": (0.85, 0.9, 0.95), "contact": (0.5,)},
    ),
    "slopes of the offsets": (offset_slopes, {"threshold": (0.2, 0.4, 0.6), "blur": (1.5, 2.5)}),
}


def judged(sample, labels):
    table = OverlapTable.from_labels(sample.labels, labels, sample.ignore)
    measures = score(table)
    return [*(measures[name] for name in ("dice", "aji", "pq")), *classify_errors(table).counts.values()]


def cored(labels, distance, core):
    highest = np.zeros(labels.max(initial=0) + 1, np.float32)
    np.maximum.at(highest, labels.ravel(), distance.ravel())
    return np.where(highest[labels] > core, labels, 0).astype(np.int32)


def agreed(labels, maps, least):
    kept = np.append(False, agreement(labels, maps.values[0], maps.disagreement) >= least)
    return np.where(kept[labels], labels, 0).astype(np.int32)


def by_watershed(tiles, way, settings):
    rows = {key: [] for key in itertools.product(CORES, AGREEMENTS)}
    for sample, maps in tiles:
        planes = upsample(maps.values, sample.labels.shape)
        labels = way(planes, planes[0] > FOREGROUND, **settings)
        for core in CORES:
            whole = _whole(cored(labels, planes[2], core), MIN_SIZE)
            for least in AGREEMENTS:
                rows[core, least].append(judged(sample, agreed(whole, maps, least)))
    return {key: np.array(kept) for key, kept in rows.items()}


def by_votes(tiles, settings):
    return {
        (core, least): np.array(
            [
                judged(
                    sample,
                    find_nuclei(
                        *maps,
                        sample.labels.shape,
                        DecodeSettings(foreground=FOREGROUND, core=core, agreement=least, **settings),
                        MIN_SIZE,
                    )[0],
                )
                for sample, maps in tiles
            ]
        )
        for core, least in itertools.product(CORES, AGREEMENTS)
    }


def each(grid):
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def compared(tiles):
    runs = {
        name: {(json.dumps(s), key): rows for s in each(grid) for key, rows in by_watershed(tiles, way, s).items()}
        for name, (way, grid) in WAYS.items()
    }
    votes = {"smooth": (2.5, 3.5, 4.5), "valley": (0.6, 0.75)}
    runs["votes of the offsets (nuclora)"] = {
        (json.dumps(s), key): rows for s in each(votes) for key, rows in by_votes(tiles, s).items()
    }
    found = []
    for name, tries in runs.items():
        keys, rows = list(tries), np.stack(list(tries.values()))
        goal = rows[:, :, 1:3].mean(2)
        half = np.arange(rows.shape[1]) % 2 == 0
        fair = rows[goal[:, ~half].mean(1).argmax()].copy()
        fair[~half] = rows[goal[:, half].mean(1).argmax()][~half]
        settings, (core, least) = keys[goal.mean(1).argmax()]
        dice, aji, pq, matched, missed, false, merged, split = fair.mean(0)
        true = matched + missed + merged + split
        found.append(
            {
                "way": name, "settings": json.loads(settings) | {"core": core, "agreement": least}, "tiles": len(tiles),
                "dice": dice, "aji": aji, "pq": pq,
                "per_100_true": {"merged": 100 * merged / true, "missed": 100 * missed / true,
                                 "split": 100 * split / true, "false": 100 * false / true},
                "goal": [float(value) for value in fair[:, 1:3].mean(1)],
            }
        )  # fmt: skip
    ours = np.array(found[-1]["goal"])
    for entry in found:
        gain = np.array(entry.pop("goal")) - ours
        entry["against_ours"] = {"mean": float(gain.mean()), "standard_error": float(gain.std() / len(gain) ** 0.5)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("fold", type=int)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--tiles", type=int, help="so many inner tiles, evenly spread; by default all")
    asked = parser.parse_args()
    if asked.tiles is not None and asked.tiles < 2:
        parser.error("settings are chosen on one half of the tiles and judged on the other: at least 2")
    run = Run(asked.run)
    predictor = load_model(run.adapter_folder(asked.fold), weights=asked.weights, precision=run.recipe.train.precision)
    tiles = []
    for tile in inner_tiles(run, asked.fold, asked.tiles):
        sample = tile.read()
        tiles.append((sample, predictor.maps(sample.image, run.recipe.evaluate.decode.views)))
    session = environment()
    json.dump(
        {"command": session["command"], "commit": session["commit"], "ways": compared(tiles)}, sys.stdout, indent=1
    )
    print()


if __name__ == "__main__":
    told(main)
