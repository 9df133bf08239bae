"""Reader of COCO JSON: instance annotations as polygons, plain run lengths or compressed run lengths.

The JSON file may lie in ``annotations/``, beside the images (Roboflow's ``_annotations.coco.json``) or above them.
Categories are ignored. A crowd (``iscrowd``: 1) stands for nuclei that nobody told apart, so its pixels are ignored;
but CVAT and Datumaro, whose annotations have ``attributes``, call every mask one, and there it is a nucleus. How
polygons become labels: `nuclora.data.polygons`. COCO has no field for the size of a pixel.

A JSON file is parsed once, while listing; a tile keeps where its annotations are in the file, and parses those alone.

Reference:
    https://cocodataset.org/#format-data
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from nuclora.data.images import guard, image_shape, read_head
from nuclora.data.pairs import group_of, tile_name
from nuclora.data.polygons import Pixels, draw, fill, union
from nuclora.data.rle import decode
from nuclora.data.tiles import Files, Listing, Tile, Truth
from nuclora.data.walk import walk
from nuclora.errors import NucloraError

NAME = "coco"

_HEAD = 1 << 16
_KEYS = re.compile(
    rb'^\s*(?:\xef\xbb\xbf)?\s*\{\s*"(?:(?:info|licenses|categories|images|annotations)"\s*:|type"\s*:\s*"instances")'
)
_GAP = re.compile(r"[ \t\r\n]*")
# COCO's own downloads have these beside the instances.
_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
_DAMAGED: Final = "the file is damaged or no COCO JSON: export it again"


def looks_like(root: Path) -> bool:
    """Whether there is a JSON file that begins as COCO's do."""
    return any(_is_coco(path) for path in walk(root, {".json"}))


def list_tiles(root: Path) -> Listing:
    """Find the images that the JSON files name; images without annotations are tiles without nuclei."""
    files = list(walk(root, {".json"}))
    begin_so = {path for path in files if _is_coco(path)}
    with_instances = {path.parent for path in begin_so if path.name.startswith("instances")}
    tiles: list[Tile] = []
    faults: list[NucloraError] = []
    for path in files:
        if path.parent in with_instances and path.name.startswith(_OTHER_TASKS):
            continue
        try:
            if not begin_so or path in begin_so or _has_annotations(path):
                tiles += _tiles_of(path, root, faults)
        except NucloraError as error:
            faults.append(error)
    return Listing(root, NAME, tuple(tiles), tuple(faults))


@dataclass(frozen=True)
class CocoAnnotations(Files):
    """Labels from some of the annotations of a JSON file.

    Attributes:
        size: Height and width that the file gives the image, or None.
        spans: First byte and end of each annotation in the file, as bytes of int64 pairs: a tile may have thousands.
    """

    size: tuple[int, int] | None
    spans: bytes

    def truth(self, tile: Tile) -> Truth:
        """Draw the annotations; ids count those that are no crowds, in the file's order."""
        shape = image_shape(tile.image)
        if self.size is not None and self.size != shape:
            raise NucloraError(
                f"{shape[0]}x{shape[1]} pixels (height x width) where {tile.labels.name} says "
                f"{self.size[0]}x{self.size[1]}",
                path=tile.image,
                mend="put the image there that was annotated",
            )
        nuclei: list[Pixels] = []
        unknown: list[Pixels] = []
        for annotation in guard(self._annotations, tile.labels):
            try:
                pixels = _pixels(annotation.get("segmentation"), shape)
            except ValueError as error:
                told = f"annotation {annotation.get('id')} of {tile.name}: {error}"
                raise NucloraError(told, path=tile.labels, mend="export it with polygons or run lengths") from error
            is_crowd = annotation.get("iscrowd") and not isinstance(annotation.get("attributes"), dict)
            (unknown if is_crowd else nuclei).append(pixels)
        return draw(nuclei, shape, unknown)

    def _annotations(self, path: Path) -> list[dict[str, Any]]:
        found = []
        with path.open("rb") as file:
            for start, end in np.frombuffer(self.spans, np.int64).reshape(-1, 2).tolist():
                file.seek(start)
                try:
                    found.append(dict(json.loads(file.read(end - start))))
                except ValueError as error:
                    mend = "leave it alone while it is in use, and start anew"
                    raise NucloraError("changed since it was listed", path=path, mend=mend) from error
        return found


def _is_coco(path: Path) -> bool:
    return _KEYS.match(read_head(path, _HEAD)) is not None


def _has_annotations(path: Path) -> bool:
    """Whether a JSON file that does not begin as COCO's do is one nevertheless."""
    try:
        content = json.loads(guard(Path.read_bytes, path))
    except ValueError as error:
        raise NucloraError("no JSON, beside COCO's", path=path, mend="export it again, or remove it") from error
    return isinstance(content, dict) and content.keys() >= {"images", "annotations"}


def _tiles_of(path: Path, root: Path, faults: list[NucloraError]) -> Iterator[Tile]:
    """Tiles of a JSON file; what is wrong with single images goes to the faults."""
    images, spans = guard(_scan, path)
    for key in sorted(map(str, spans.keys() - images.keys()))[:1]:
        reason = f"annotations of an image {key} that is not among the images"
        faults.append(NucloraError(reason, path=path, mend="export it again with all images"))
    for key, entry in images.items():
        image = _find(str(entry.get("file_name")), path, root)
        if image is None:
            mend = "put it into the folder of the JSON file, or into images/ beside it"
            faults.append(NucloraError(f"no image {str(entry.get('file_name'))!a}", path=path, mend=mend))
            continue
        height, width = entry.get("height"), entry.get("width")
        yield Tile(
            name=tile_name(image, root),
            group=group_of(image.relative_to(root)),
            image=image,
            labels=path,
            source=CocoAnnotations(
                size=(height, width) if isinstance(height, int) and isinstance(width, int) else None,
                spans=np.array(spans.get(key, []), np.int64).tobytes(),
            ),
        )


def _find(name: str, path: Path, root: Path) -> Path | None:
    """Where an image is; None if nowhere in the data set's folder."""
    split = path.stem.removeprefix("instances_")
    above = path.parent.parent if path.parent != root else root
    # CVAT has images/default beside annotations/instances_default.json, Roboflow and others train/images.
    within = [above / "images", above / split, above / "images" / split, above / split / "images"]
    inside = Path(os.path.normpath(root.absolute()))
    for folder in (path.parent, path.parent / "images", above, *within, root, root / "images"):
        # Label Studio on Windows writes backslashes.
        image = Path(os.path.normpath((folder / name.replace("\\", "/")).absolute()))
        if image.is_file() and image.is_relative_to(inside):
            return root / image.relative_to(inside)
    return None


def _scan(path: Path) -> tuple[dict[Any, dict[str, Any]], dict[Any, list[tuple[int, int]]]]:
    """Entries of the images by id, and where the annotations of each are in the file."""
    # Bytes of UTF-8 above 127 only occur inside strings: taken for Latin-1, positions are those of the bytes.
    text = path.read_bytes().decode("latin-1")
    images: dict[Any, dict[str, Any]] = {}
    spans: defaultdict[Any, list[tuple[int, int]]] = defaultdict(list)
    decoder = json.JSONDecoder()
    at = 3 if text.startswith("\xef\xbb\xbf") else 0
    try:
        at = _skip(text, at, "{")
        while text[at] != "}":
            key, at = decoder.raw_decode(text, at)
            at = _skip(text, at, ":")
            if key not in ("images", "annotations"):
                _, at = decoder.raw_decode(text, at)
            else:
                at = _skip(text, at, "[")
                while text[at] != "]":
                    entry, end = decoder.raw_decode(text, at)
                    if key == "images":
                        if entry["id"] in images:
                            mend = "export it again, or give each image an id of its own"
                            raise NucloraError(f"two images of the id {entry['id']}", path=path, mend=mend)
                        images[entry["id"]] = json.loads(text[at:end].encode("latin-1"))
                    else:
                        spans[entry["image_id"]].append((at, end))
                    at = _next(text, end)
                at += 1
            at = _next(text, at)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise NucloraError(f"cannot be read ({type(error).__name__} at byte {at})", path=path, mend=_DAMAGED) from error
    return images, spans


def _skip(text: str, at: int, character: str) -> int:
    """Position after a character that must come next, and the white space behind it."""
    at = _end_of_gap(text, at)
    if text[at : at + 1] != character:
        raise ValueError(f"no {character} at byte {at}")
    return _end_of_gap(text, at + 1)


def _next(text: str, at: int) -> int:
    """Position of the next entry, or of the bracket that ends the list."""
    at = _end_of_gap(text, at)
    return _end_of_gap(text, at + 1) if text[at] == "," else at


def _end_of_gap(text: str, at: int) -> int:
    found = _GAP.match(text, at)
    return found.end() if found else at


def _pixels(segmentation: Any, shape: tuple[int, int]) -> Pixels:
    """Pixels of a segmentation of any kind; ValueError where it is of none."""
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if size != list(shape):
            raise ValueError(f"run lengths of a mask of size {size} for an image of {list(shape)}")
        if not isinstance(counts, (list, str)):
            raise ValueError("run lengths without counts")
        return decode(counts, shape)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("no segmentation")
    parts = []
    for ring in segmentation:
        try:
            points = np.asarray(ring, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            points = np.zeros(1)
        if points.ndim != 1 or points.size % 2:
            raise ValueError("a polygon that is no list of x and y in turn")
        parts.append(fill([points.reshape(-1, 2)], shape))
    return union(parts)
