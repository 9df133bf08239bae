"""Reader of QuPath's GeoJSON: ``X.geojson`` (or ``X.tif.geojson``) for the image ``X.tif``.

Detections are nuclei; of a cell its nucleus is taken, and a cell without one is left out. Where any file of the data
set has a detection, a cell or an annotation of the class ``Nucleus``, other annotations are the regions that these lie
in: what is drawn by hand in QuPath is an annotation. Where none has, all annotations are nuclei. What is classified as
``Ignore*``, QuPath's own class for that, is ignored. Points, lines, tiles and TMA cores are left out. How polygons
become labels: `nuclora.data.polygons`; GeoJSON of QuPath has no field for the size of a pixel.

Reference:
    https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nuclora.data.images import IMAGE_SUFFIXES, guard, image_shape
from nuclora.data.pairs import find_images, group_of, pair, tile_name
from nuclora.data.polygons import Pixels, draw, fill, union
from nuclora.data.tiles import Files, Listing, Tile, Truth
from nuclora.data.walk import walk
from nuclora.errors import NucloraError

NAME = "qupath"

_SUFFIX = ".geojson"
_IGNORE = "ignore*"
# The class of what nuclora writes.
_NUCLEUS = "nucleus"
_MEND = "export the objects from QuPath again (File > Export objects as GeoJSON)"
_OBJECTS = re.compile(rb'"object_?[tT]ype"\s*:\s*"(?:detection|cell)"|"Path(?:Detection|Cell)Object"')
# Of what is then parsed: nuclei may have been named, and not classified, so.
_CLASSES = re.compile(rb'"nucleus', re.IGNORECASE)
_OME = re.compile(r"\.ome$", re.IGNORECASE)
_KINDS_OF_NUCLEI = frozenset({"annotation", "detection", "cell"})
# Before version 0.3 QuPath told the kind in the feature's id.
_OLD_KINDS = {
    "PathAnnotationObject": "annotation",
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
    "TMACoreObject": "tma_core",
    "PathRootObject": "root",
}


def looks_like(root: Path) -> bool:
    """Whether there is a GeoJSON file."""
    return next(walk(root, {_SUFFIX}), None) is not None


def list_tiles(root: Path) -> Listing:
    """Find the images and their GeoJSON files, side by side or in folders of their own."""
    pairs, faults = pair(
        find_images(root, IMAGE_SUFFIXES), list(walk(root, {_SUFFIX})), "GeoJSON file", _without_ome, _image_stem
    )
    source = GeoJsonObjects(annotations=not any(_tells_nuclei(path) for _, path in pairs))
    tiles = [
        Tile(tile_name(image, root), group_of(image.relative_to(root)), image, path, source=source)
        for image, path in pairs
    ]
    return Listing(root, NAME, tuple(tiles), tuple(faults))


@dataclass(frozen=True)
class GeoJsonObjects(Files):
    """Labels drawn from the objects of a GeoJSON file.

    Attributes:
        annotations: Whether annotations of any class are nuclei.
    """

    annotations: bool

    def truth(self, tile: Tile) -> Truth:
        """Draw the objects; ids count the nuclei in the file's order."""
        shape = image_shape(tile.image)
        nuclei: list[Pixels] = []
        unknown: list[Pixels] = []
        regions = 0
        for number, feature in enumerate(guard(_features, tile.labels), start=1):
            kind, ignored = _kind(feature), _class(feature) == _IGNORE
            is_region = kind == "annotation" and not self.annotations and not _is_drawn_nucleus(feature)
            if not ignored and (is_region or kind not in _KINDS_OF_NUCLEI):
                regions += is_region
                continue
            geometry = feature.get("nucleusGeometry" if kind == "cell" and not ignored else "geometry")
            try:
                pixels = _pixels(geometry, shape)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                what = geometry.get("type") if isinstance(geometry, dict) else "geometry"
                told = f"object {number}: coordinates that make no {what}"
                raise NucloraError(told, path=tile.labels, mend=_MEND) from error
            if pixels is not None:
                (unknown if ignored else nuclei).append(pixels)
        return replace(draw(nuclei, shape, unknown), regions=regions)


def _image_stem(path: Path) -> str:
    stem = Path(path.stem)
    return _without_ome(stem) if stem.suffix.lower() in IMAGE_SUFFIXES else _OME.sub("", stem.name)


def _without_ome(path: Path) -> str:
    # QuPath takes .ome.tif for one suffix.
    return _OME.sub("", path.stem)


def _features(path: Path) -> list[dict[str, Any]]:
    """The objects of a feature collection, a list of features, or a single one: QuPath exports all three."""
    text = path.read_text("utf-8-sig")
    content = json.loads(text) if text.strip() else None
    if isinstance(content, dict):
        content = content.get("features") if content.get("type") == "FeatureCollection" else [content]
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise NucloraError("no GeoJSON features", path=path, mend=_MEND)
    return content


def _properties(feature: dict[str, Any]) -> dict[str, Any]:
    properties = feature.get("properties")
    return properties if isinstance(properties, dict) else {}


def _tells_nuclei(path: Path) -> bool:
    """Whether a file says of some objects that they are nuclei."""
    text = guard(Path.read_bytes, path)
    if _OBJECTS.search(text):
        return True
    if not _CLASSES.search(text):
        return False
    with contextlib.suppress(NucloraError):
        # A damaged file is told when its tile is read.
        return any(map(_is_drawn_nucleus, guard(_features, path)))
    return False


def _is_drawn_nucleus(feature: dict[str, Any]) -> bool:
    # With what QuPath derives from it, as "Nucleus: Positive".
    return _kind(feature) == "annotation" and _class(feature).partition(":")[0] == _NUCLEUS


def _kind(feature: dict[str, Any]) -> str:
    told = _properties(feature).get("objectType") or _properties(feature).get("object_type")
    return str(told) if told else _OLD_KINDS.get(str(feature.get("id")), "annotation")


def _class(feature: dict[str, Any]) -> str:
    found = _properties(feature).get("classification")
    if isinstance(found, dict):
        # Newer versions write a class and what is derived from it as a list.
        names = found.get("names")
        found = found.get("name") or (": ".join(map(str, names)) if isinstance(names, list) else "")
    return str(found or "").lower()


def _pixels(geometry: Any, shape: tuple[int, int]) -> Pixels | None:
    """Pixels of an area, None of what has none."""
    if geometry is None:
        return None
    kind, coordinates = geometry["type"], geometry.get("coordinates")
    if kind == "Polygon":
        return fill(coordinates, shape) if coordinates else np.zeros(0, np.int64)
    if kind == "MultiPolygon":
        return union(fill(polygon, shape) for polygon in coordinates if polygon)
    if kind == "GeometryCollection":
        return union(part for item in geometry["geometries"] if (part := _pixels(item, shape)) is not None)
    return None
