"""Images to network input."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nuclora.errors import NucloraError

Normalise = Literal["unit", "imagenet", "minmax"]
"""How pixel values are scaled; see :func:`prepare`."""

# Of SAM's training images, in RGB and units of 255 levels.
_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_STD = (58.395, 57.12, 57.375)


def require_rgb(image: NDArray[np.uint8]) -> None:
    """See that an array that a caller has made is an RGB image.

    Raises:
        NucloraError: Not uint8 (H, W, 3), or without pixels.
    """
    is_array = isinstance(image, np.ndarray)
    if not is_array or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        what = f"an array of {image.dtype} {image.shape}" if is_array else f"a {type(image).__name__}"
        raise NucloraError(
            f"{what}, not an image: uint8 (height, width, 3)",
            mend='read it with numpy.asarray(PIL.Image.open(path).convert("RGB"))',
        )


def prepare(image: NDArray[np.uint8], size: int, normalise: Normalise, *, antialias: bool = False) -> Tensor:
    """Resize an image to the network's square input, and normalise its values.

    Args:
        image: uint8 (height, width, 3) RGB.
        size: Side of the input in pixels.
        normalise: "unit" divides by 255, as the study did; "imagenet" takes SAM's mean and standard deviation;
            "minmax" stretches the image's own range to [0, 1], as LiteMedSAM does.
        antialias: Smooth before pixels are left out, lest details smaller than the new pixels come back as patterns.
            The published networks were not read so; those with a dense decoder are. No matter where pixels are added.

    Returns:
        float32 (3, size, size).

    Raises:
        NucloraError: As :func:`require_rgb`.
    """
    require_rgb(image)
    # A copy: the array may be read-only, which torch warns of.
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float()
    if pixels.shape[1:] != (size, size):
        resized = F.interpolate(pixels[None], (size, size), mode="bilinear", align_corners=False, antialias=antialias)
        pixels = resized[0]
    if normalise == "unit":
        return pixels / 255
    if normalise == "imagenet":
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (_IMAGENET_MEAN, _IMAGENET_STD))
        return (pixels - mean) / std
    if normalise == "minmax":
        low, high = pixels.aminmax()
        return (pixels - low) / (high - low).clamp(min=1e-8)
    raise ValueError(f"unknown normalisation {normalise!r}")
