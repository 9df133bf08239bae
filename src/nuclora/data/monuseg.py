"""Reader of MoNuSeg, Kumar and MoNuSAC: images with polygons in Aperio's XML, one nucleus a region.

Published as ``Tissue Images/X.tif`` with ``Annotations/X.xml`` (MoNuSeg 2018 training, Kumar), or both in one folder
(MoNuSeg test, MoNuSAC); some images of MoNuSAC's test set come as ``X.svs`` alone. Slides of TCGA at 40x: .25 microns
per pixel, unless the file itself says it (``MicronsPerPixel``). How polygons become labels: `nuclora.data.polygons`.

References:
    Kumar et al., A dataset and a technique for generalized nuclear segmentation for computational pathology, IEEE
    TMI 36 (2017): tiles of 1000x1000 pixels "at 40x". Kumar et al., A multi-organ nucleus segmentation challenge, IEEE
    TMI 39 (2020). Verma et al., MoNuSAC2020, IEEE TMI 40 (2021).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from nuclora.data.images import IMAGE_SUFFIXES, MAX_PIXELS, guard, image_shape, read_head
from nuclora.data.pairs import find_images, group_of, pair, tile_name
from nuclora.data.polygons import Pixels, draw, fill
from nuclora.data.tiles import Files, Listing, Tile, Truth
from nuclora.data.walk import walk
from nuclora.errors import NucloraError
from nuclora.io.pyramid import Slide
from nuclora.io.slides import open_slide

NAME = "monuseg"

# Of ASAP, whose elements have similar names, is no Region.
_APERIO = re.compile(rb"<Annotations[\s>]")
_MICRONS = re.compile(rb"<Annotations\s[^>]*MicronsPerPixel=\"([0-9.]+)\"")
_HEAD = 4096
_AT_40X = 0.25
_AMBIGUOUS = "ambiguous"
_SLIDE = ".svs"


def looks_like(root: Path) -> bool:
    """Whether there is an XML file of Aperio's kind."""
    return any(_is_aperio(path) for path in walk(root, {".xml"}))


def list_tiles(root: Path) -> Listing:
    """Find the images and their XML files, side by side or in folders of their own."""
    labels = [path for path in walk(root, {".xml"}) if _is_aperio(path)]
    images = find_images(root, IMAGE_SUFFIXES)
    stems = {path.with_suffix("") for path in labels} - {path.with_suffix("") for path in images}
    cut = [path for path in walk(root, {_SLIDE}) if path.with_suffix("") in stems]
    pairs, faults = pair([*images, *cut], labels, "XML file")
    tiles = [
        Tile(
            name=tile_name(image, root),
            group=group_of(image.relative_to(root)),
            image=image,
            labels=path,
            source=AperioPolygons(),
            microns_per_pixel=_microns_per_pixel(path),
        )
        for image, path in pairs
    ]
    return Listing(root, NAME, tuple(tiles), tuple(faults))


@dataclass(frozen=True)
class AperioPolygons(Files):
    """Labels drawn from the regions of an XML file; MoNuSAC's regions of the class "Ambiguous" are ignored."""

    def image(self, tile: Tile) -> NDArray[np.uint8]:
        """Read the image, (H, W, 3)."""
        if tile.image.suffix.lower() != _SLIDE:
            return super().image(tile)
        with open_slide(tile.image) as slide:
            _require_tile(slide)
            return slide.read(0, 0, slide.width, slide.height)

    def truth(self, tile: Tile) -> Truth:
        """Draw the regions; ids count the regions of nuclei in the file's order."""
        shape = _shape(tile.image)
        root = guard(_parse, tile.labels)
        nuclei: list[Pixels] = []
        unknown: list[Pixels] = []
        holes: list[Pixels] = []
        for layer in root.iter("Annotation"):
            ambiguous = _is_ambiguous(layer)
            for number, region in enumerate(layer.iter("Region"), start=1):
                pixels = _pixels(region, shape, tile.labels, number)
                if region.get("NegativeROA") == "1":
                    holes.append(pixels)
                else:
                    (unknown if ambiguous or _is_ambiguous(region) else nuclei).append(pixels)
        _cut(holes, nuclei, unknown)
        return draw(nuclei, shape, unknown)


def _is_ambiguous(element: ElementTree.Element) -> bool:
    """Whether a layer or a region is called so, or has an attribute of its own that is."""
    named = [attribute.get("Name", "") for attribute in element.findall("Attributes/Attribute")]
    return _AMBIGUOUS in [name.strip().lower() for name in (*named, element.get("Name", ""))]


def _cut(holes: Sequence[Pixels], *regions: list[Pixels]) -> None:
    """Take each hole out of the smallest region that most of it lies in: in a hole there may be another nucleus."""
    whole = [list(group) for group in regions]
    for hole in holes:
        around = [
            (len(pixels), group, index)
            for group, members in enumerate(whole)
            for index, pixels in enumerate(members)
            if 2 * np.isin(hole, pixels, assume_unique=True).sum() > len(hole)
        ]
        if around:
            _, group, index = min(around)
            regions[group][index] = np.setdiff1d(regions[group][index], hole)


def _shape(image: Path) -> tuple[int, int]:
    if image.suffix.lower() != _SLIDE:
        return image_shape(image)
    with open_slide(image) as slide:
        _require_tile(slide)
        return slide.height, slide.width


def _require_tile(slide: Slide) -> None:
    if slide.width * slide.height > MAX_PIXELS:
        raise NucloraError(f"more than {MAX_PIXELS} pixels", path=slide.path, mend="cut it into tiles")


def _is_aperio(path: Path) -> bool:
    return _APERIO.search(_head(path)) is not None and b"<ASAP_" not in _head(path)


def _head(path: Path) -> bytes:
    return read_head(path, _HEAD)


def _microns_per_pixel(path: Path) -> float | None:
    found = _MICRONS.search(_head(path))
    try:
        told = float(found[1]) if found else 0.0
    except ValueError:
        told = 0.0
    if told > 0:
        return told
    return _AT_40X if path.name.startswith("TCGA-") else None


def _parse(path: Path) -> ElementTree.Element:
    content = path.read_bytes()
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        # Entities can blow a small file up to gigabytes.
        raise NucloraError("a document type in the XML, which Aperio never writes", path=path, mend="remove it")
    return ElementTree.fromstring(content)


def _pixels(region: ElementTree.Element, shape: tuple[int, int], path: Path, number: int) -> Pixels:
    try:
        points = [(float(vertex.attrib["X"]), float(vertex.attrib["Y"])) for vertex in region.iter("Vertex")]
        return fill([points or np.zeros((0, 2))], shape)
    except (KeyError, ValueError) as error:
        what = f"region {region.get('Id', number)}: a vertex without two numbers X and Y"
        raise NucloraError(what, path=path, mend="export the annotations from ImageScope again") from error
