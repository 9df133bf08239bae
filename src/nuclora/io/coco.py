"""Nuclei as COCO JSON: a polygon, a box and a score each.

Reference:
    https://cocodataset.org/#format-data and #format-results
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuclora.files import atomic_file
from nuclora.io.geojson import Ring, outlines

_CATEGORY = {"id": 1, "name": "nucleus"}
_IMAGE = 1


def nucleus_annotations(labels: NDArray[np.int32], scores: NDArray[np.float32]) -> Iterator[dict[str, Any]]:
    """One annotation a nucleus, ids ascending.

    Args:
        labels: Label map, (H, W), 1..n and 0 background. Of a nucleus in several parts the largest is taken.
        scores: Score of each nucleus, (n,), that of id i at i - 1.
    """
    for label, rings, area in outlines(labels):
        yield annotation(label, rings, float(scores[label - 1]), area)


def annotation(label: int, rings: Sequence[Ring], score: float, area: float) -> dict[str, Any]:
    """The annotation of one nucleus.

    Args:
        label: Its id.
        rings: Its outline, as :func:`nuclora.io.geojson.outline` gives it; COCO's polygons have no holes, so the outer
            ring alone is taken.
        score: Its score.
        area: In pixels.
    """
    outer = rings[0]
    left, top = outer.min(axis=0).tolist()
    width, height = np.ptp(outer, axis=0).tolist()
    return {
        "id": label,
        "image_id": _IMAGE,
        "category_id": _CATEGORY["id"],
        # Closed without saying its first point twice.
        "segmentation": [outer[:-1].ravel().tolist()],
        "bbox": [left, top, width, height],
        "area": area,
        "iscrowd": 0,
        "score": round(score, 4),
    }


def write_coco(path: Path, file_name: str, shape: tuple[int, int], annotations: Iterable[dict[str, Any]]) -> None:
    """Write the nuclei of one image, an annotation a line, one after the other and atomically.

    Args:
        path: The file.
        file_name: Of the image.
        shape: Height and width of the image, in pixels.
        annotations: As :func:`annotation` gives them.

    Raises:
        NucloraError: The disk is full or the path cannot be written.
    """
    image = {"id": _IMAGE, "file_name": file_name, "height": shape[0], "width": shape[1]}
    with atomic_file(path) as file:
        # pycocotools 2.0.9 asks for the info.
        head = {"info": {}, "images": [image], "categories": [_CATEGORY]}
        lines = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in head.items()]
        file.write(("{" + ",\n".join([*lines, '"annotations":[\n'])).encode("utf-8"))
        for index, one in enumerate(annotations):
            line = json.dumps(one, separators=(",", ":"))
            file.write((",\n" + line if index else line).encode("utf-8"))
        file.write(b"\n]}\n")
