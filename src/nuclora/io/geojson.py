"""Nuclei as GeoJSON that QuPath opens: one detection each, with its outline and measurements.

QuPath takes a FeatureCollection whose features have ``objectType``, ``classification`` and ``measurements`` among their
properties (https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html). Coordinates are in
pixels of the image, x right and y down; the first pixel covers 0..1, so its centre is (0.5, 0.5).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nuclora.files import atomic_file

CLASSIFICATION: Final = {"name": "Nucleus", "color": [0, 200, 255]}

Ring = NDArray[np.float64]


def features(
    labels: NDArray[np.int32], scores: NDArray[np.float32], microns_per_pixel: float | None = None
) -> Iterator[dict[str, Any]]:
    """One GeoJSON feature a nucleus, ids ascending.

    Args:
        labels: Label map, (H, W), 1..n and 0 background. Of a nucleus in several parts the largest is taken.
        scores: Score of each nucleus, (n,), that of id i at i - 1.
        microns_per_pixel: Of the image; where known, areas are given in square microns too.
    """
    for label, rings, area in outlines(labels):
        yield feature(label, rings, float(scores[label - 1]), area, microns_per_pixel)


def feature(
    label: int, rings: Sequence[Ring], score: float, area: float, microns_per_pixel: float | None
) -> dict[str, Any]:
    """The GeoJSON feature of one nucleus.

    Args:
        label: Its id.
        rings: Its outline, as :func:`outline` gives it.
        score: Its score.
        area: In pixels.
        microns_per_pixel: Of the image; where known, the area is given in square microns too.
    """
    measurements = {"Label": label, "Score": round(score, 4), "Area px^2": area}
    if microns_per_pixel is not None:
        measurements["Area µm^2"] = round(area * microns_per_pixel**2, 4)
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring.tolist() for ring in rings]},
        "properties": {"objectType": "detection", "classification": CLASSIFICATION, "measurements": measurements},
    }


def write_features(path: Path, features: Iterable[dict[str, Any]]) -> None:
    """Write features as a GeoJSON FeatureCollection, one a line, one after the other and atomically.

    Args:
        path: The file.
        features: As :func:`feature` gives them.

    Raises:
        NucloraError: The disk is full or the path cannot be written.
    """
    with atomic_file(path) as file:
        file.write(b'{"type":"FeatureCollection","features":[\n')
        for index, one in enumerate(features):
            line = json.dumps(one, ensure_ascii=False, separators=(",", ":"))
            file.write((",\n" + line if index else line).encode("utf-8"))
        file.write(b"\n]}\n")


def write_geojson(
    path: Path, labels: NDArray[np.int32], scores: NDArray[np.float32], microns_per_pixel: float | None = None
) -> None:
    """Write the nuclei of a label map as GeoJSON, see :func:`write_features`.

    Args:
        path: The file.
        labels: As in :func:`features`.
        scores: As in :func:`features`.
        microns_per_pixel: As in :func:`features`.

    Raises:
        NucloraError: The disk is full or the path cannot be written.
    """
    write_features(path, features(labels, scores, microns_per_pixel))


def outlines(labels: NDArray[np.int32]) -> Iterator[tuple[int, list[Ring], int]]:
    """Id, rings (see :func:`outline`) and area in pixels of each nucleus, ids ascending.

    Args:
        labels: Label map, (H, W), 0 background. Of a nucleus in several parts the largest is outlined.
    """
    from scipy import ndimage

    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            mask = labels[box] == label
            yield label, outline(mask, (box[1].start, box[0].start)), int(np.count_nonzero(mask))


def outline(mask: NDArray[np.bool_], origin: tuple[int, int] = (0, 0)) -> list[Ring]:
    """The outline of a mask's largest part (4-connected), and of the holes in it.

    Marching squares, which passes half-way between a pixel inside and its neighbour outside: along straight edges that
    is the pixels' edge, corners are cut by half a pixel. No two of its points coincide, so no ring touches itself or
    another, and the polygon is valid by the rules of Simple Features.

    Args:
        mask: (H, W), with at least one pixel set.
        origin: x and y of its first pixel in the image.

    Returns:
        Closed rings (N, 2) of x and y, the last point equal to the first: the outer one with positive area
        (Green's formula on x and y), then the holes with negative area.

    Example:
        >>> outline(np.array([[True, True]]))[0].tolist()
        [[0.0, 0.5], [0.5, 0.0], [1.5, 0.0], [2.0, 0.5], [1.5, 1.0], [0.5, 1.0], [0.0, 0.5]]
    """
    from scipy import ndimage
    from skimage.measure import find_contours

    parts, count = ndimage.label(mask)
    if count > 1:
        parts = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    padded = np.pad(parts.astype(np.float64), 1)
    # Back by the padding, and from pixel centres at whole numbers to pixel corners there.
    rings = [_simplified(ring[:, ::-1] + origin - 0.5) for ring in find_contours(padded, 0.5)]
    rings.sort(key=lambda ring: -abs(_area(ring)))
    return [_wound(rings[0], 1), *(_wound(ring, -1) for ring in rings[1:])]


def _simplified(ring: Ring) -> Ring:
    """Without the points in the middle of straight lines, beginning at the first corner in reading order."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    corners = points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    corners = np.roll(corners, -int(np.lexsort((corners[:, 1], corners[:, 0]))[0]), axis=0)
    return np.concatenate([corners, corners[:1]])


def _area(ring: Ring) -> float:
    x, y = (ring - ring[0]).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2


def _wound(ring: Ring, sign: int) -> Ring:
    return ring if _area(ring) * sign > 0 else ring[::-1]
