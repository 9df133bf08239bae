from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

Pair = tuple[NDArray[np.int32], NDArray[np.int32]]


def _blobs(rng: np.random.Generator, shape: tuple[int, int], count: int) -> NDArray[np.int32]:
    """Ellipses painted over one another, with ids out of order and gaps."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    labels = np.zeros(shape, dtype=np.int32)
    for label in rng.permutation(3 * count)[:count] + 1:
        cy, cx = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        ry, rx = rng.uniform(1, 9, size=2)
        labels[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1] = label
    return labels


def _worsened(rng: np.random.Generator, truth: NDArray[np.int32]) -> NDArray[np.int32]:
    """A prediction with each nucleus kept, moved, dropped, cut in two or fused with another."""
    prediction = np.zeros_like(truth)
    ids = np.unique(truth)[1:]
    for label in ids:
        mask = truth == label
        match rng.integers(5):
            case 0:
                prediction[mask] = label
            case 1:
                prediction[np.roll(mask, tuple(rng.integers(-3, 4, size=2)), axis=(0, 1))] = label + 1000
            case 2:
                prediction[mask] = label
                prediction[mask & (np.arange(truth.shape[1]) > np.argwhere(mask)[:, 1].mean())] = label + 2000
            case 3:
                prediction[mask] = rng.choice(ids)
            case _:
                pass
    return prediction


@pytest.fixture(scope="session")
def random_pair() -> Callable[[int], Pair]:
    """Label maps of truth and prediction from a seed, of a different nature with each."""

    def make(seed: int) -> Pair:
        rng = np.random.default_rng(seed)
        shape = (int(rng.integers(8, 72)), int(rng.integers(8, 72)))
        truth = _blobs(rng, shape, int(rng.integers(0, 25)))
        match seed % 4:
            case 0:
                return truth, _worsened(rng, truth)
            case 1:
                return truth, _blobs(rng, shape, int(rng.integers(0, 25)))
            case 2:
                noise = rng.integers(0, rng.integers(1, 12), size=(2, *shape), dtype=np.int32)
                return noise[0], noise[1]
            case _:
                # No background at all, so that everything touches and overlaps.
                side = int(rng.integers(3, 9))
                y, x = np.mgrid[: shape[0], : shape[1]]
                cells = y // side * 50 + x // side + 1
                return cells.astype(np.int32), np.roll(cells, rng.integers(0, side, 2), (0, 1)).astype(np.int32)

    return make
