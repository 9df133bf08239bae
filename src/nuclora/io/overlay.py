"""The overlay: an image with the outline of each nucleus drawn on it, to be looked at pixel by pixel."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nuclora.files import write_atomic
from nuclora.io.colouring import neighbour_colours

OUTLINE_COLOURS: Final = ((0, 255, 255), (255, 255, 0), (0, 255, 60), (255, 255, 255), (255, 150, 0))
"""Bright, and far from the pinks, purples and blues of the stain; neighbours differ, more is not meant by them."""

_WIDTH = 1.6
_RIM = 0.45
_SMOOTHING = 1.0
# Nuclei that are less deep are smoothed less: they would vanish.
_SMOOTHED_FROM_DEPTH = 3.0
_REACH = 4
_FINER = 4
# Half the time of zlib's default for 5 % more bytes.
_COMPRESSION = 3


def draw_outlines(image: NDArray[np.uint8], labels: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Draw a thin smooth line along the inner side of each nucleus's edge.

    The line is a band of the smoothed signed distance to the edge, which anti-aliases it: a pixel takes as much of the
    colour as the band covers of it. Touching nuclei show both their lines. A faint dark rim on the background around
    them keeps the lines legible on pale tissue.

    Args:
        image: RGB, (H, W, 3).
        labels: Label map, (H, W), 0 background.

    Returns:
        A copy of the image with the outlines, uint8 (H, W, 3).
    """
    from scipy import ndimage

    numbers = neighbour_colours(labels, len(OUTLINE_COLOURS))
    drawn = image.copy()
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        top, left = (max(part.start - _REACH, 0) for part in box)
        around = np.s_[top : box[0].stop + _REACH, left : box[1].stop + _REACH]
        part, ids = drawn[around], labels[around]
        depth = _depth(ids == label)
        line = np.clip(_WIDTH / 2 + 0.5 - np.abs(depth - _WIDTH / 2), 0, 1)[..., None]
        rim = np.where(ids == 0, np.clip(1 - np.abs(depth + 0.5), 0, 1), 0)[..., None] * _RIM
        colour = np.array(OUTLINE_COLOURS[numbers[label] % len(OUTLINE_COLOURS)])
        part[:] = np.round(part * (1 - rim) * (1 - line) + colour * line)
    return drawn


def write_overlay(path: Path, image: NDArray[np.uint8], labels: NDArray[np.int32]) -> None:
    """Write an image with the outlines of its nuclei as PNG, atomically.

    Args:
        path: The file.
        image: As in :func:`draw_outlines`.
        labels: As in :func:`draw_outlines`.

    Raises:
        NucloraError: The disk is full or the path cannot be written.
    """
    write_picture(path, draw_outlines(image, labels))


def write_picture(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image, RGB (H, W, 3), as PNG, atomically.

    Raises:
        NucloraError: The disk is full or the path cannot be written.
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=_COMPRESSION)
    write_atomic(path, buffer.getvalue())


def draw_rings(image: NDArray[np.uint8], rings: Sequence[NDArray[np.float64]], colour: tuple[int, int, int]) -> None:
    """Draw the outline of one nucleus onto an image, where no label map of the whole is at hand.

    Args:
        image: RGB, (H, W, 3); changed.
        rings: Closed rings (N, 2) of x and y; the image's first pixel covers 0 to 1.
        colour: Of the line.
    """
    from PIL import Image, ImageDraw

    points = np.concatenate(rings)
    left, top = np.maximum(np.floor(points.min(0)).astype(int) - 2, 0)
    part = image[top : int(np.ceil(points[:, 1].max())) + 2, left : int(np.ceil(points[:, 0].max())) + 2]
    if not part.size:
        return
    # Drawn several times as large, and made small: the line's edges are smooth.
    large = Image.new("L", (part.shape[1] * _FINER, part.shape[0] * _FINER))
    pen = ImageDraw.Draw(large)
    for ring in rings:
        places = [tuple(point) for point in ((ring - (left, top)) * _FINER).tolist()]
        pen.line(places, fill=255, width=round(_WIDTH * _FINER), joint="curve")
    cover = np.asarray(large.reduce(_FINER), dtype=np.float32)[..., None] / 255
    part[:] = np.round(part * (1 - cover) + np.array(colour) * cover)


def _depth(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distance of pixel centres to the mask's edge, positive inside; smoothed, so that stairs become curves."""
    from scipy import ndimage

    inside = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    outside = ndimage.distance_transform_edt(~mask)
    depth: NDArray[np.float64] = np.where(mask, inside - 0.5, 0.5 - outside)
    sigma = _SMOOTHING * min(1.0, float(depth.max()) / _SMOOTHED_FROM_DEPTH)
    smooth: NDArray[np.float64] = ndimage.gaussian_filter(depth, sigma, mode="nearest", truncate=3.0)
    return smooth
