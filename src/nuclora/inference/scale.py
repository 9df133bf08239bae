"""Images at another magnification than the adapter learnt at: to its scale, and the nuclei back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nuclora.data.images import MAX_PIXELS
from nuclora.errors import NucloraError
from nuclora.inference.merge import largest_components
from nuclora.io.pyramid import Level, Pixels, Slide

# Half a percent of a nucleus is nothing that resampling would not spoil more.
_SAME = 0.005


def scale_to(adapters_microns: float | None, microns_per_pixel: float | None) -> float:
    """Pixels of an image for each pixel that the model is to see.

    Args:
        adapters_microns: Microns per pixel that the adapter was trained at.
        microns_per_pixel: Of the image.

    Returns:
        1 where they are about the same, or one of them is not known.
    """
    if adapters_microns is None or microns_per_pixel is None:
        return 1.0
    scale = adapters_microns / microns_per_pixel
    return 1.0 if abs(scale - 1) < _SAME else scale


def rescale(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """Resample an image, as a slide of the same pixels is.

    Args:
        image: uint8 (H, W, 3).
        scale: Pixels of the image for each pixel of the result.

    Raises:
        NucloraError: As :func:`require_room`.
    """
    height, width = image.shape[:2]
    require_room((height, width), scale)
    return _Held(image).read(0, 0, width, height, scale)


def require_room(shape: tuple[int, int], scale: float) -> None:
    """See that an image can be held once it is rescaled.

    Args:
        shape: Height and width of the image.
        scale: As in :func:`rescale`.

    Raises:
        NucloraError: It would be too large.
    """
    if shape[0] * shape[1] / scale**2 > MAX_PIXELS:
        raise NucloraError(
            f"enlarged {1 / scale:.3g} times to the adapter's scale it has over {MAX_PIXELS:,} pixels",
            mend="see that --mpp is right; save it as a TIFF of several levels, which is read as a slide",
        )


def labels_back(
    labels: NDArray[np.int32], scores: NDArray[np.float32], shape: tuple[int, int], scale: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Bring labels to the pixels of the image that was rescaled.

    Args:
        labels: int32 (h, w), 1..n, of what :func:`rescale` gave.
        scores: float32 (n,).
        shape: Height and width of the image.
        scale: As in :func:`rescale`.

    Returns:
        Labels of the image, int32 (H, W), 1..m, each pixel's that of the nearest pixel; and their scores. A nucleus
        that falls between the image's pixels is left out, and of one that falls apart all but its largest part.
    """
    rows, columns = (
        np.minimum((np.arange(length) + 0.5) / scale, of_labels - 1).astype(np.int64)
        for length, of_labels in zip(shape, labels.shape, strict=True)
    )
    back = labels[rows[:, None], columns]
    if scale < 1:
        # Between the pixels that are left a neck may be lost.
        back = largest_components(back)
    kept = np.bincount(back.ravel(), minlength=len(scores) + 1) > 0
    kept[0] = False
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    return numbers[back], scores[kept[1:]]


class _Held(Slide):
    """An image in memory, which is read as a slide of one level."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        super().__init__(Path(), [Level(image.shape[1], image.shape[0])], None)
        self._image = image

    def close(self) -> None:
        """Nothing to close."""

    def read_level(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        return self._image[top : top + height, left : left + width]
