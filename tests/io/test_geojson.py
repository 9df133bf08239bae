"""GeoJSON for QuPath: valid rings by the rules of Simple Features, in the pixels of the image."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from nuclora.inference.outputs import FORMATS
from nuclora.io import geojson
from nuclora.io.geojson import outline, write_geojson


def area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2


def crosses(ring: np.ndarray, other: np.ndarray) -> bool:
    """Whether two edges meet anywhere but at the corner that neighbours in one ring share."""

    def side(p, q, r):
        value = (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])
        return (value > 0) - (value < 0)

    def on(p, q, r):
        return side(p, q, r) == 0 and min(p[0], q[0]) <= r[0] <= max(p[0], q[0]) and min(p[1], q[1]) <= r[1] <= max(
            p[1], q[1]
        )  # fmt: skip

    edges = list(zip(ring.tolist(), ring.tolist()[1:], strict=False))
    others = list(zip(other.tolist(), other.tolist()[1:], strict=False))
    for i, (a, b) in enumerate(edges):
        for j, (c, d) in enumerate(others):
            if ring is other and (j <= i or j - i in (1, len(edges) - 1)):
                continue
            if any(on(a, b, p) for p in (c, d)) or any(on(c, d, p) for p in (a, b)):
                return True
            if side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0:
                return True
    return False


def check_valid(rings: list[np.ndarray]) -> None:
    assert area(rings[0]) > 0
    for index, ring in enumerate(rings):
        assert len(ring) >= 4
        np.testing.assert_array_equal(ring[0], ring[-1])
        assert len({tuple(point) for point in ring.tolist()}) == len(ring) - 1
        assert not crosses(ring, ring)
        if index:
            assert area(ring) < 0
            assert not crosses(rings[0], ring)


def blobs(seed: int, smooth: float) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((14, 14)), smooth)
    mask = noise > 0
    mask[7, 7] = True
    return mask


@pytest.mark.parametrize("smooth", [0, 0.6, 1.2])
@pytest.mark.parametrize("seed", range(12))
def test_rings_of_ragged_masks_are_valid_and_hold_the_area(seed: int, smooth: float) -> None:
    mask = blobs(seed, smooth)
    rings = outline(mask)
    check_valid(rings)
    parts, _ = ndimage.label(mask)
    size = np.bincount(parts.ravel())[1:].max()
    # Each corner that is cut costs or gives an eighth of a pixel.
    corners = sum(len(ring) - 1 for ring in rings)
    assert abs(sum(area(ring) for ring in rings) - size) <= corners / 8


def test_pixels_that_touch_at_corners_are_two_parts_and_a_ring_never_touches_itself() -> None:
    around = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], dtype=bool)
    (ring,) = outline(around)
    check_valid([ring])
    # (1, 2) and (2, 1) meet at a corner only: the hole between them is open there.
    assert area(outline(np.eye(3, dtype=bool))[0]) == 0.5


def test_holes_stay_holes() -> None:
    mask = np.ones((7, 9), dtype=bool)
    mask[2:5, 3:6] = False
    outer, hole = outline(mask, (10, 20))
    check_valid([outer, hole])
    assert area(outer) == 63 - 4 / 8
    assert area(hole) == -(9 - 4 / 8)
    assert outer.min(axis=0).tolist() == [10, 20]
    assert outer.max(axis=0).tolist() == [19, 27]


def test_the_largest_part_is_taken() -> None:
    mask = np.zeros((5, 12), dtype=bool)
    mask[0:2, 0:2] = mask[1:5, 5:11] = True
    (ring,) = outline(mask)
    assert ring.min(axis=0).tolist() == [5, 1]
    assert ring.max(axis=0).tolist() == [11, 5]


def test_straight_lines_have_no_points_in_their_middle() -> None:
    (ring,) = outline(np.ones((30, 40), dtype=bool))
    assert len(ring) == 9


def test_the_file_is_what_qupath_reads(tmp_path: Path) -> None:
    labels = np.zeros((40, 50), np.int32)
    labels[0:10, 0:8], labels[20:30, 20:44], labels[39, 49] = 1, 2, 4
    write_geojson(tmp_path / "a.geojson", labels, np.array([0.5, 0.87654321, 0, 1], np.float32), 0.5)
    content = json.loads((tmp_path / "a.geojson").read_text("utf-8"))
    assert content["type"] == "FeatureCollection"
    assert [feature["properties"]["measurements"] for feature in content["features"]] == [
        {"Label": 1, "Score": 0.5, "Area px^2": 80, "Area µm^2": 20.0},
        {"Label": 2, "Score": 0.8765, "Area px^2": 240, "Area µm^2": 60.0},
        {"Label": 4, "Score": 1.0, "Area px^2": 1, "Area µm^2": 0.25},
    ]
    for feature in content["features"]:
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        assert feature["properties"]["objectType"] == "detection"
        assert feature["properties"]["classification"]["name"] == "Nucleus"
        check_valid([np.array(ring) for ring in feature["geometry"]["coordinates"]])
    # The corner of the image is the corner of the pixel, as QuPath counts.
    corner = np.array(content["features"][2]["geometry"]["coordinates"][0])
    assert corner.max(axis=0).tolist() == [50, 40]


def test_no_nuclei_make_an_empty_collection_and_unknown_microns_no_areas(tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", np.zeros((4, 4), np.int32), np.zeros(0, np.float32))
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
    write_geojson(tmp_path / "b.geojson", np.ones((4, 4), np.int32), np.ones(1, np.float32))
    assert "µm" not in (tmp_path / "b.geojson").read_text("utf-8")


def test_the_example_holds() -> None:
    assert doctest.testmod(geojson).failed == 0


def test_qupaths_import_script_knows_our_names() -> None:
    script = (Path(__file__).parents[2] / "docs" / "qupath" / "import-nuclora.groovy").read_text("utf-8")
    one = geojson.feature(1, outline(np.ones((2, 2), bool)), 0.5, 4, None)["properties"]
    assert f'getPathClass("{one["classification"]["name"]}")' in script
    for name in ("Label", "Score"):
        assert name in one["measurements"]
        assert f'hasMeasurement(one, "{name}")' in script
    assert f'+ "{FORMATS["geojson"]}"' in script
