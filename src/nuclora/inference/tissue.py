"""Where on a slide there is tissue, so that glass costs nothing."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MICRONS_PER_PIXEL: Final = 10.0
"""The scale at which tissue is looked for."""

# Microns.
_SMOOTHING = 15.0
_MARGIN = 40.0
# Square microns: what is smaller is dust; a hole that is smaller is a vessel or a gland.
_SPECK = 5_000.0
_HOLE = 250_000.0
# What takes this share of the picture is no speck, however small the picture.
_SPECKS_SHARE = 0.1
# Differences of optical density. Glass has less than the first, however noisy; what has more than the second is
# stained, even where the rest of the slide is stained so much more that Otsu's threshold lies between the two.
_LEAST = 0.03
_MOST = 0.05


def tissue_mask(thumbnail: NDArray[np.uint8], microns_per_pixel: float = MICRONS_PER_PIXEL) -> NDArray[np.bool_]:
    """Tell tissue from glass.

    What is stained is coloured: a pixel counts by the difference between its largest and its smallest optical density
    over red, green and blue, which is near nothing for glass of any brightness, for its dirt and for ink that is black.
    That is smoothed and cut at Otsu's threshold ("A threshold selection method from gray-level histograms", IEEE Trans.
    SMC 1979), which is kept between two bounds: of glass alone nothing is tissue, of tissue alone all. Holes are
    filled, specks are left out, and a margin is added. What the picture's edge cuts is neither a hole nor a speck.

    Args:
        thumbnail: RGB, (H, W, 3).
        microns_per_pixel: Of the thumbnail.

    Returns:
        bool (H, W).
    """
    from skimage.filters import threshold_otsu

    density = -np.log10((thumbnail.astype(np.float32) + 1) / 256)
    colour = ndimage.gaussian_filter(np.ptp(density, axis=2), _SMOOTHING / microns_per_pixel)
    stained = colour > np.clip(threshold_otsu(colour), _LEAST, _MOST)
    area = microns_per_pixel**2
    stained = _without_holes(_without_specks(stained, _SPECK / area), _HOLE / area)
    reach = _MARGIN / microns_per_pixel
    mask: NDArray[np.bool_] = ndimage.distance_transform_edt(~stained) <= reach if stained.any() else stained
    return mask


def _without_specks(mask: NDArray[np.bool_], pixels: float) -> NDArray[np.bool_]:
    """Without the connected parts of fewer pixels; what reaches the picture's edge may be more tissue, and no speck."""
    parts, _ = ndimage.label(mask)
    large = np.bincount(parts.ravel()) >= min(pixels, _SPECKS_SHARE * mask.size)
    for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        large[edge] = True
    large[0] = False
    kept: NDArray[np.bool_] = large[parts]
    return kept


def _without_holes(mask: NDArray[np.bool_], pixels: float) -> NDArray[np.bool_]:
    """With the holes of fewer pixels filled; what reaches the picture's edge may be more glass, and no hole."""
    parts, _ = ndimage.label(~mask)
    small = np.bincount(parts.ravel()) < pixels
    for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        small[edge] = False
    filled: NDArray[np.bool_] = mask | small[parts]
    return filled
