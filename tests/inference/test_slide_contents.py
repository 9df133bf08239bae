"""What the outputs of a slide say of each nucleus, held against its label map."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pyarrow import parquet
from scipy import ndimage
from skimage.draw import polygon2mask
from skimage.measure import regionprops

from nuclora.data.images import read_image
from nuclora.inference import blocks, slide_outputs
from nuclora.inference import slides as module
from nuclora.inference.canvas import Region, SlideOptions
from nuclora.inference.engine import LocalEngine
from nuclora.inference.image_files import find_images
from nuclora.inference.images import predict_images
from nuclora.inference.jobs import How
from nuclora.inference.outputs import open_outputs
from nuclora.io.labels import read_labels
from slide_makers import write_slide
from spots import SETTINGS, SpotPredictor, spots

MICRONS = 4.0
REGION = Region(30, 20, 221, 140)


@pytest.fixture(scope="module", params=[None, 5.0], ids=["as it is", "resampled"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, float]:
    """The outputs of a region in many blocks, the slide's pixels, and its pixels for each of the canvas."""
    folder = tmp_path_factory.mktemp("slide")
    image = np.full((170, 260, 3), 245, np.uint8)
    image[:, :170] = spots(170, 170)
    path = write_slide(folder / "slide.tif", image, MICRONS)
    options = SlideOptions(region=REGION, adapters_microns=request.param)
    plan = blocks.plan_blocks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "plan_blocks", lambda shape, lattice: plan(shape, lattice, (1, 1)))
        patch.setattr(blocks, "HALO", 32)
        patch.setattr(slide_outputs, "OVERVIEW_SIDE", 110)
        formats = ("labels", "geojson", "coco", "table", "parquet", "overlay")
        how = How({"adapter": {}, "settings": {}, "precision": "no"}, SpotPredictor, formats, SETTINGS, slides=options)
        with open_outputs(folder / "out") as out:
            predict_images(find_images([path]), out, how, engine=LocalEngine())
    return folder / "out", image, (request.param or MICRONS) / MICRONS


def rasterised(ring: np.ndarray, scale: float, shape: tuple[int, int]) -> np.ndarray:
    """The canvas's pixels whose middles lie in a ring of level 0."""
    on_canvas = (ring - [REGION.left, REGION.top]) / scale
    return polygon2mask(shape, on_canvas[:, ::-1] - 0.5)


def test_outlines_tables_and_boxes_are_those_of_the_label_map(made: tuple[Path, np.ndarray, float]) -> None:
    out, image, scale = made
    labels = read_labels(out / "slide.labels.tif")
    regions = {region.label: region for region in regionprops(labels)}
    features = json.loads((out / "slide.geojson").read_text("utf-8"))["features"]
    coco = json.loads((out / "slide.coco.json").read_text("utf-8"))
    with (out / "slide.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    columns = parquet.read_table(out / "slide.parquet").to_pydict()
    assert coco["images"] == [{"id": 1, "file_name": "slide.tif", "height": image.shape[0], "width": image.shape[1]}]
    assert len(regions) == len(table) == len(features) == len(coco["annotations"]) == len(columns["label"]) > 10
    assert len({row["score"] for row in table}) > 5
    for number, (row, feature, one) in enumerate(zip(table, features, coco["annotations"], strict=True), start=1):
        region = regions[number]
        area = region.area * scale**2
        # The middle of a pixel of the canvas, where level 0 has the middle of its first pixel at 0.
        y, x = (
            corner + (middle + 0.5) * scale - 0.5
            for corner, middle in zip((REGION.top, REGION.left), region.centroid, strict=True)
        )
        np.testing.assert_allclose([float(row["centroid_x"]), float(row["centroid_y"])], [x, y], atol=1e-3)
        assert float(row["area_px"]) == pytest.approx(area, abs=1e-3)
        assert float(row["area_um2"]) == pytest.approx(area * MICRONS**2, abs=1e-2)
        for name, values in columns.items():
            assert values[number - 1] == pytest.approx(float(row[name]), abs=1e-4), name
        measured = feature["properties"]["measurements"]
        assert (measured["Label"], one["id"]) == (number, number)
        assert measured["Score"] == one["score"] == pytest.approx(float(row["score"]), abs=1e-4)
        assert measured["Area px^2"] == one["area"] == pytest.approx(area, abs=1e-3)
        assert measured["Area µm^2"] == pytest.approx(area * MICRONS**2, abs=1e-2)
        ring = np.array(feature["geometry"]["coordinates"][0])
        np.testing.assert_array_equal(rasterised(ring, scale, labels.shape), labels == number)
        np.testing.assert_array_equal(np.reshape(one["segmentation"][0], (-1, 2)), ring[:-1])
        top, left, bottom, right = (
            corner + edge * scale for corner, edge in zip((REGION.top, REGION.left) * 2, region.bbox, strict=True)
        )
        np.testing.assert_allclose(one["bbox"], [left, top, right - left, bottom - top], atol=2e-3)


def test_the_label_map_says_how_large_its_pixels_are(made: tuple[Path, np.ndarray, float]) -> None:
    out, _, scale = made
    with tifffile.TiffFile(out / "slide.labels.tif") as tiff:
        tags = tiff.pages[0].tags
        assert tags["ResolutionUnit"].value == 3
        for name in ("XResolution", "YResolution"):
            above, below = tags[name].value
            assert 1e4 / (above / below) == pytest.approx(MICRONS * scale, rel=1e-4)


def test_a_smaller_overview_has_its_lines_where_the_nuclei_are(made: tuple[Path, np.ndarray, float]) -> None:
    out, _, scale = made
    overlay = read_image(out / "slide.overlay.png")
    assert overlay.shape == (70, 110, 3)
    labels = np.pad(read_labels(out / "slide.labels.tif"), 1)
    edges = np.zeros(labels.shape, bool)
    edges[1:] |= labels[1:] != labels[:-1]
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    # Nuclei and glass are dull, lines are not (white ones aside).
    lines = np.argwhere(np.ptp(overlay.astype(int), axis=2) > 150)
    assert len(lines) > 200
    shrink = REGION.width / 110 / scale
    there = np.minimum((lines + 0.5) * shrink + 1, np.array(labels.shape) - 1).astype(int)
    distance = ndimage.distance_transform_edt(~edges)[there[:, 0], there[:, 1]] / shrink
    assert distance.max() < 2
