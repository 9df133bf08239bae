"""What of a slide is predicted: a region of it, at the scale that the adapter knows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nuclora.errors import NucloraError
from nuclora.inference.scale import scale_to
from nuclora.inference.tissue import MICRONS_PER_PIXEL, tissue_mask
from nuclora.io.pyramid import Slide
from nuclora.io.slides import open_slide

# Pixels of the mask that are looked at on each side of a region, half a millimetre: a corner of tissue that the region
# cuts off would pass for a speck. No speck is so long that it reaches the region from the edge of what is looked at.
_AROUND = 50


class Region(NamedTuple):
    """A rectangle of a slide, in pixels of level 0."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class SlideOptions:
    """How slides are taken.

    Attributes:
        microns_per_pixel: Of level 0; by default the file is asked.
        adapters_microns: Microns per pixel that the adapter was trained at, where known.
        region: A rectangle in pixels of level 0; by default all.
        everywhere: Look for nuclei on glass too.
    """

    microns_per_pixel: float | None = None
    adapters_microns: float | None = None
    region: Region | None = None
    everywhere: bool = False


@dataclass(frozen=True)
class Canvas:
    """A region of a slide as one picture, whose pixels nuclei are looked for in.

    Attributes:
        slide: The slide, open.
        region: Where the picture lies in it.
        scale: Pixels of level 0 for each pixel of the picture.
        microns_per_pixel: Of level 0.
    """

    slide: Slide
    region: Region
    scale: float
    microns_per_pixel: float

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the picture. What is left of a pixel at its end is left out."""
        height, width = (
            max(1, math.floor(size / self.scale + 1e-6)) for size in (self.region.height, self.region.width)
        )
        return height, width

    def read(self, rows: range, columns: range) -> NDArray[np.uint8]:
        """Read a part of the picture: uint8 RGB (rows, columns, 3).

        Raises:
            NucloraError: The file is damaged there.
        """
        left = self.region.left + columns.start * self.scale
        top = self.region.top + rows.start * self.scale
        return self.slide.read(left, top, len(columns) * self.scale, len(rows) * self.scale, self.scale)


class Tissue(NamedTuple):
    """Where on a canvas there is tissue.

    Attributes:
        mask: bool (h, w), over the whole canvas.
        scale: Pixels of the canvas for each pixel of the mask.
        mm2: Its area in square millimetres.
    """

    mask: NDArray[np.bool_]
    scale: float
    mm2: float

    def meets(self, rows: range, columns: range) -> bool:
        """Whether there is any in a rectangle of the canvas."""
        inside = tuple(
            slice(min(math.floor(part.start / self.scale), length - 1), math.ceil(part.stop / self.scale))
            for part, length in zip((rows, columns), self.mask.shape, strict=True)
        )
        return bool(self.mask[inside].any())


@contextlib.contextmanager
def open_canvas(path: Path, options: SlideOptions) -> Iterator[Canvas]:
    """Open what of a slide is to be predicted.

    Args:
        path: The slide.
        options: How it is taken.

    Raises:
        NucloraError: As :func:`nuclora.io.slides.open_slide` and :func:`make_canvas`.
    """
    with open_slide(path, options.microns_per_pixel) as slide:
        yield make_canvas(slide, options.region, options.adapters_microns)


def make_canvas(slide: Slide, region: Region | None, adapters_microns: float | None) -> Canvas:
    """Decide what of a slide is predicted, and at what scale.

    Args:
        slide: The slide.
        region: A rectangle of it; by default all.
        adapters_microns: Microns per pixel that the adapter was trained at; where they are not known, the slide is
            taken as it is.

    Raises:
        NucloraError: The slide's own microns per pixel are not known, or the region lies beyond it.
    """
    if slide.microns_per_pixel is None:
        raise NucloraError(
            "the file does not say how large its pixels are", path=slide.path, mend="give --mpp, microns per pixel"
        )
    region = region or Region(0, 0, slide.width, slide.height)
    _require_inside(region, slide)
    return Canvas(slide, region, scale_to(adapters_microns, slide.microns_per_pixel), slide.microns_per_pixel)


def find_tissue(canvas: Canvas, everywhere: bool = False) -> Tissue:
    """Find where on a canvas there is tissue.

    Args:
        canvas: The canvas.
        everywhere: Take all of it for tissue, without a look.

    Raises:
        NucloraError: The file is damaged.
    """
    region, microns = canvas.region, canvas.microns_per_pixel
    mm2 = region.width * region.height * microns**2 / 1e6
    if everywhere:
        return Tissue(np.ones((1, 1), dtype=bool), float(max(canvas.shape)), mm2)
    scale = MICRONS_PER_PIXEL / microns
    try:
        mask = _mask(canvas.slide, region, scale, _AROUND)
    except NucloraError:
        # The region may have been chosen because what lies around it is damaged.
        mask = _mask(canvas.slide, region, scale, 0)
    return Tissue(mask, scale / canvas.scale, mm2 * float(mask.mean()))


def _mask(slide: Slide, region: Region, scale: float, around: int) -> NDArray[np.bool_]:
    """Tell tissue from glass in a region by the look of it and of what lies around it.

    Args:
        slide: The slide.
        region: Of the slide.
        scale: Pixels of level 0 for each pixel of the mask.
        around: So many pixels of the mask are looked at on each side, as far as the slide goes.

    Returns:
        bool (h, w), over the region.

    Raises:
        NucloraError: The file is damaged there.
    """
    height, width = max(1, round(region.height / scale)), max(1, round(region.width / scale))
    above, before = (min(around, int(start / scale)) for start in (region.top, region.left))
    below = min(around, max(0, int((slide.height - region.top) / scale) - height))
    after = min(around, max(0, int((slide.width - region.left) / scale) - width))
    thumbnail = slide.read(
        region.left - before * scale,
        region.top - above * scale,
        (before + width + after) * scale,
        (above + height + below) * scale,
        scale,
    )
    return tissue_mask(thumbnail)[above : above + height, before : before + width]


def parse_region(text: str) -> Region:
    """Read ``x,y,width,height``.

    Raises:
        NucloraError: It is something else.
    """
    try:
        region = Region(*(int(part) for part in text.split(",")))
    except (ValueError, TypeError) as error:
        raise NucloraError(f"no region: {text}", mend="give four whole numbers, x,y,width,height") from error
    if region.width < 1 or region.height < 1:
        raise NucloraError(f"an empty region: {text}", mend="give x,y,width,height in pixels of level 0")
    return region


def _require_inside(region: Region, slide: Slide) -> None:
    path: Path = slide.path
    right, bottom = region.left + region.width, region.top + region.height
    if region.left < 0 or region.top < 0 or right > slide.width or bottom > slide.height:
        raise NucloraError(
            f"the region {','.join(map(str, region))} reaches beyond the slide's {slide.width} x {slide.height} pixels",
            path=path,
            mend="give --region as x,y,width,height within them",
        )
