"""Slides for tests, as tifffile writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile


def halve(image: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; a last odd row or column is left out."""
    height, width = (size // 2 * 2 for size in image.shape[:2])
    parts = image[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
    return np.rint(parts.mean(axis=(1, 3))).astype(image.dtype)


def write_slide(
    path: Path,
    image: np.ndarray,
    microns_per_pixel: float | None = None,
    *,
    levels: int = 2,
    tile: int = 64,
    ome: bool = False,
    **options: Any,
) -> Path:
    """A tiled pyramid: levels as reduced pages, which OpenSlide calls a generic TIFF, or an OME-TIFF with sub-IFDs."""
    options = {"photometric": "rgb", "tile": (tile, tile), "compression": "zlib"} | options
    if microns_per_pixel is not None and not ome:
        options |= {"resolution": (1e4 / microns_per_pixel,) * 2, "resolutionunit": "CENTIMETER"}
    metadata: dict[str, Any] | None = None
    if ome:
        metadata = {"axes": "YXS"}
        if microns_per_pixel is not None:
            metadata |= {f"PhysicalSize{axis}": microns_per_pixel * 1000 for axis in "XY"}
            metadata |= {f"PhysicalSize{axis}Unit": "nm" for axis in "XY"}
    with tifffile.TiffWriter(path, ome=ome) as tiff:
        tiff.write(image, subifds=levels - 1 if ome else None, metadata=metadata, **options)
        for _ in range(levels - 1):
            image = halve(image)
            tiff.write(image, subfiletype=1, metadata=None, **options)
    return path
