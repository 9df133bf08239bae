"""Label maps and decoder maps to measure on, of any size and number of nuclei, the same in each run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common import parser
from nuclora.data import open_tiles
from nuclora.data.synthetic import ORGANS, synthesize_tile
from nuclora.data.targets import OFFSETS, dense_targets

Labels = NDArray[np.int32]
Floats = NDArray[np.float32]


def tile_parser(description: str, script: str) -> argparse.ArgumentParser:
    """:func:`common.parser`, with the tiles to measure on."""
    options = parser(description, script)
    options.add_argument("--data", type=Path, help="A labelled set in place of synthetic tiles.")
    return options


def tiles(data: Path | None, count: int) -> Iterator[tuple[str, Labels]]:
    """What tiles are and their labels: synthetic ones of each organ, or the first real ones of groups."""
    if data is None:
        for organ in ORGANS[:count]:
            yield organ, synthesize_tile(512, 0, organ).labels
        return
    groups: dict[str, Labels] = {}
    for tile in open_tiles(data):
        # One without nuclei has nothing to be measured on.
        if tile.group not in groups and (labels := tile.read().labels).any():
            groups[tile.group] = labels
        if len(groups) == count:
            break
    yield from groups.items()


def discs(side: int, count: int, seed: int) -> Labels:
    """`count` discs on a jittered lattice over side x side pixels, a third to a half of a lattice cell wide.

    Maps of one `side` and `count` differ by seed as a prediction differs from the truth: a few pixels each way.
    """
    rng = np.random.default_rng(seed)
    across = int(np.ceil(np.sqrt(count)))
    cell = side / across
    places = np.random.default_rng(0).permutation(across**2)[:count]
    labels = np.zeros((side, side), np.int32)
    # No wider than a nucleus at 40x, whatever room there is.
    largest = min(0.45 * cell, 16.0)
    for label, place in enumerate(places, start=1):
        middle = (np.array(divmod(place, across)) + 0.5) * cell + rng.uniform(-0.1, 0.1, 2) * largest
        radius = largest * rng.uniform(0.7, 1)
        low = np.maximum(np.floor(middle - radius).astype(int), 0)
        high = np.minimum(np.ceil(middle + radius).astype(int) + 1, side)
        box = slice(low[0], high[0]), slice(low[1], high[1])
        y, x = np.ogrid[box]
        labels[box][np.hypot(y - middle[0], x - middle[1]) <= radius] = label
    return labels


def noisy_maps(labels: Labels, seed: int = 0) -> Floats:
    """Maps as a trained decoder gives them: the targets with soft edges and scattered offsets."""
    rng = np.random.default_rng(seed)
    maps = dense_targets(labels)
    maps[:3] = np.clip(maps[:3] + rng.normal(0, 0.08, maps[:3].shape), 0, 1)
    maps[OFFSETS] += rng.normal(0, 1.5, maps[OFFSETS].shape)
    return maps
