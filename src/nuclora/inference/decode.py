"""Preliminary, by the lead: helper A replaces this file."""

from __future__ import annotations
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed
from nuclora.recipe import DecodeSettings
import torch


def decode(
    maps: NDArray[np.float32], shape: tuple[int, int], settings: DecodeSettings, min_size: int
) -> NDArray[np.int32]:
    m = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[None], scale_factor=2, mode="bilinear", align_corners=False
    )[0].numpy()[:, : shape[0], : shape[1]]
    fg = m[0] > settings.foreground
    core = (m[2] - m[1]) > settings.seed
    seeds, _ = ndimage.label(core & fg)
    out: NDArray[np.int32] = watershed(-(m[2] - m[1]), seeds, mask=fg).astype(np.int32)
    areas = np.bincount(out.ravel())
    keep = areas >= min_size
    keep[0] = False
    new = np.cumsum(keep) * keep
    return new[out].astype(np.int32)
