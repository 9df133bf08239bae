"""Pictures of nuclei that say themselves where their middle is, and a model that reads it off them."""

from __future__ import annotations

import numpy as np

from nuclora.inference.predictor import Predictor
from nuclora.recipe import DecodeSettings, DenseSettings, EvaluateSettings

GLASS = 245
SETTINGS = EvaluateSettings(min_size=20, decode=DecodeSettings(views=1, smooth=2.0))


def spots(height: int, width: int, seed: int = 0, radius: int = 11) -> np.ndarray:
    """An RGB picture of crowded discs, many of which touch.

    A pixel of a nucleus is blue below 128, and red and green tell its way down and right to the nucleus's middle.
    """
    generator = np.random.default_rng(seed)
    image = np.full((height + 4 * radius, width + 4 * radius, 3), GLASS, dtype=np.uint8)
    for top in range(0, height + radius, 2 * radius):
        for left in range(0, width + radius, 2 * radius):
            size = int(generator.integers(5, radius + 1))
            row, column = top + int(generator.integers(radius, 2 * radius)), left + int(generator.integers(0, radius))
            y, x = np.mgrid[row - size : row + size + 1, column + radius - size : column + radius + size + 1]
            inside = np.hypot(y - row, x - column - radius) <= size
            if generator.random() < 0.8:
                nucleus = np.stack([128 + row - y, 128 + column + radius - x, np.full_like(y, 60)], axis=2)
                image[y[inside], x[inside]] = nucleus[inside]
    return image[radius : radius + height, radius : radius + width].copy()


class SpotPredictor(Predictor):
    """Reads the maps off the colours, each window with an error of its own: only the same windows give the same maps.

    Attributes:
        seen: How many windows were predicted.
    """

    def __init__(self, window: int = 64) -> None:
        self.dense = DenseSettings(window=window)
        self.settings = SETTINGS
        self.calibration = ()
        self.microns_per_pixel = None
        self.seen = 0

    def window_planes(self, window: np.ndarray, count: int) -> np.ndarray:
        self.seen += 1
        side = window.shape[0] // 2
        inside = (window[..., 2] < 128).astype(np.float32)
        offsets = np.where(inside, window[..., :2].astype(np.float32).transpose(2, 0, 1) - 128, 0)
        depth = np.clip(1 - np.hypot(*offsets) / 12, 0, 1) * inside
        planes = np.stack([inside, np.zeros_like(inside), depth, *offsets])
        share = planes.reshape(5, side, 2, side, 2).mean(axis=(2, 4))
        error = np.float32(np.sin(window.astype(np.int64).sum()))
        share[0] *= 0.93 + 0.05 * error
        share[3:] += 0.4 * error
        return np.concatenate([share, np.full((1, side, side), 1 + error, np.float32)]).astype(np.float32)
