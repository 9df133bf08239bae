"""Slides to files of their nuclei: outputs, going on after a kill, and what is told in one line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from shapely.geometry import Polygon, shape
from skimage.measure import regionprops

from nuclora.data.images import read_image
from nuclora.errors import NucloraError
from nuclora.inference import slides as module
from nuclora.inference.blocks import Found
from nuclora.inference.canvas import Region, SlideOptions, open_canvas
from nuclora.inference.engine import LocalEngine, NamedProgress
from nuclora.inference.image_files import find_images
from nuclora.inference.images import Outcome, predict_images
from nuclora.inference.jobs import How, require_slides
from nuclora.inference.outputs import FORMATS, open_outputs
from nuclora.inference.parts import Parts
from nuclora.io import zarr as of_zarr
from nuclora.io.labels import read_labels
from nuclora.io.slides import TiffSlide
from nuclora.io.zarr import Grid, write_zarr
from slide_makers import write_slide
from spots import SETTINGS, SpotPredictor, spots

MADE_BY = {"adapter": {"sha": "a"}, "settings": {}, "precision": "no"}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks on a small slide."""
    from nuclora.inference import blocks

    plan = blocks.plan_blocks
    monkeypatch.setattr(module, "plan_blocks", lambda shape, lattice: plan(shape, lattice, (1, 1)))
    monkeypatch.setattr(blocks, "HALO", 32)


@pytest.fixture
def image() -> np.ndarray:
    image = np.full((170, 260, 3), 245, np.uint8)
    image[:, :170] = spots(170, 170)
    return image


@pytest.fixture
def slide(image: np.ndarray, tmp_path: Path) -> Path:
    return write_slide(tmp_path / "slide.tif", image, 4.0)


def predict(
    slide: Path,
    out: Path,
    slides: SlideOptions | None = None,
    block_progress: NamedProgress | None = None,
    load: Callable[[], Any] = SpotPredictor,
    made_by: dict[str, Any] = MADE_BY,
    formats: tuple[str, ...] = tuple(FORMATS),
    overwrite: bool = False,
) -> Outcome:
    how = How(made_by, load, formats, SETTINGS, slides=slides or SlideOptions(), overwrite=overwrite)
    with open_outputs(out) as folder:
        return predict_images(find_images([slide]), folder, how, engine=LocalEngine(), block_progress=block_progress)


def outputs(out: Path) -> dict[str, bytes]:
    """The content of every output by its name, in a store of every file of it."""
    named = [out / f"slide{ending}" for ending in FORMATS.values()]
    files = [file for path in named for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    assert all(path.exists() for path in named)
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in files}


def stop_after(blocks: int) -> Callable[[str, int, int], None]:
    def progress(name: str, done: int, total: int) -> None:
        assert (name, total > blocks) == ("slide", True)
        if done >= blocks:
            raise KeyboardInterrupt

    return progress


def test_every_output_of_a_slide(slide: Path, image: np.ndarray, tmp_path: Path) -> None:
    outcome = predict(slide, tmp_path / "out")
    expected = SpotPredictor().nuclei(image, SETTINGS)
    (row,) = outcome.rows
    assert (row.nuclei, row.width, row.height) == (len(expected.scores), 260, 170)
    assert row.tissue_mm2 is not None
    assert 0.3 < row.tissue_mm2 / (260 * 170 * 16e-6) < 0.8
    assert row.peak_mb is not None
    assert row.peak_mb > 50
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        *(f"slide{ending}" for ending in FORMATS.values()), "summary.csv", "predict.jsonl", ".lock",
    }  # fmt: skip
    labels = read_labels(out / "slide.labels.tif")
    np.testing.assert_array_equal(labels > 0, expected.labels > 0)
    assert labels.max() == row.nuclei
    with tifffile.TiffFile(out / "slide.labels.tif") as tiff:
        assert tiff.is_bigtiff
        assert tiff.pages[0].is_tiled
    features = json.loads((out / "slide.geojson").read_text("utf-8"))["features"]
    with (out / "slide.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    by_label = {region.label: region for region in regionprops(labels)}
    assert len(features) == len(table) == len(by_label) == row.nuclei
    for number, (one, measured) in enumerate(zip(features, table, strict=True), start=1):
        region = by_label[number]
        assert int(measured["label"]) == one["properties"]["measurements"]["Label"] == number
        assert int(measured["area_px"]) == region.area
        assert float(measured["area_um2"]) == pytest.approx(region.area * 16, rel=1e-3)
        np.testing.assert_allclose(
            [float(measured["centroid_y"]), float(measured["centroid_x"])], region.centroid, atol=1e-4
        )
        polygon = shape(one["geometry"])
        assert isinstance(polygon, Polygon)
        assert polygon.is_valid
        top, left, bottom, right = region.bbox
        assert polygon.bounds == (left, top, right, bottom)
    overlay = read_image(out / "slide.overlay.png")
    assert overlay.shape == image.shape
    assert (overlay != image).any(axis=2)[:, :175].mean() > 0.1
    np.testing.assert_array_equal(overlay[:, 200:], image[:, 200:])
    assert "trained" in outcome.notes[0]


@pytest.mark.parametrize("blocks", [1, 3])
def test_interrupted_it_goes_on_and_ends_with_the_same_bytes(blocks: int, slide: Path, tmp_path: Path) -> None:
    predict(slide, tmp_path / "unbroken")
    out = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        predict(slide, out, block_progress=stop_after(blocks))
    kept = {path: path.stat().st_mtime_ns for path in (out / "slide.parts").glob("*.npz")}
    assert len(kept) >= blocks
    assert not list(out.glob("slide.*.*"))
    told: list[int] = []
    predict(slide, out, block_progress=lambda name, done, total: told.append(done))
    assert told[0] == len(kept)
    assert outputs(out) == outputs(tmp_path / "unbroken")
    assert not (out / "slide.parts").exists()


def test_killed_between_two_outputs_it_computes_nothing_again(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = module.write_output, 0

    def die(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(module, "write_output", die)
    with pytest.raises(KeyboardInterrupt):
        predict(slide, tmp_path / "out")
    predictor = SpotPredictor()
    predict(slide, tmp_path / "out", load=lambda: predictor)
    assert predictor.seen == 0
    assert outputs(tmp_path / "out")
    # Killed once more before the parts were removed: they go when the outputs are found to be there.
    Parts(tmp_path / "out" / "slide.parts", {}).root.mkdir()
    assert predict(slide, tmp_path / "out").kept == {str(slide)}
    assert not (tmp_path / "out" / "slide.parts").exists()


def test_work_that_is_begun_after_the_outputs_stays(slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(slide, out, formats=("table",))
    with pytest.raises(KeyboardInterrupt):
        predict(slide, out, formats=("table", "geojson"), block_progress=stop_after(2))
    parts = sorted((out / "slide.parts").glob("*.npz"))
    assert len(parts) >= 2
    assert predict(slide, out, formats=("table",)).kept == {str(slide)}
    assert sorted((out / "slide.parts").glob("*.npz")) == parts


def test_parts_of_another_make_are_told_before_any_other_slide_is_begun(
    slide: Path, image: np.ndarray, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict(slide, out, block_progress=stop_after(2))
    # Its turn comes first.
    write_slide(tmp_path / "first.tif", image, 4.0)
    how = How(MADE_BY | {"adapter": {"sha": "b"}}, SpotPredictor, ("table",), SETTINGS)
    with open_outputs(out) as folder, pytest.raises(NucloraError, match=r"slide\.parts: there is unfinished"):
        predict_images(find_images([tmp_path / "first.tif", slide]), folder, how, engine=LocalEngine())
    assert not (out / "first.csv").exists()


def test_parts_of_another_make_are_refused_and_dropped_when_told(slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict(slide, out, block_progress=stop_after(2))
    for other, told in (
        ({"made_by": MADE_BY | {"adapter": {"sha": "b"}}}, "other adapter"),
        ({"slides": SlideOptions(region=Region(0, 0, 200, 100))}, "other region"),
        ({"slides": SlideOptions(microns_per_pixel=3.9)}, "other microns_per_pixel"),
        ({"slides": SlideOptions(everywhere=True)}, "other tissue_mask"),
    ):
        with pytest.raises(NucloraError, match=rf"slide\.parts: there is unfinished .*: {told}; name another"):
            predict(slide, out, **other)
    everywhere = SlideOptions(everywhere=True)
    with pytest.raises(KeyboardInterrupt):
        predict(slide, out, everywhere, overwrite=True, block_progress=stop_after(2))
    # The same command goes on.
    told_done: list[int] = []
    predict(slide, out, everywhere, overwrite=True, block_progress=lambda name, done, total: told_done.append(done))
    assert told_done[0] >= 2


def test_a_damaged_part_is_named_and_keeps_no_other_slide_waiting(slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict(slide, out, block_progress=stop_after(2))
    part = sorted((out / "slide.parts").glob("*.npz"))[0]
    part.write_bytes(part.read_bytes()[:-30])
    other = slide.with_name("zebra.tif")
    other.write_bytes(slide.read_bytes())
    outcome = predict(slide.parent, out)
    assert [str(error) for error in outcome.failures] == [
        f"{part}: damaged; delete it and run the same command again: it alone is made anew"
    ]
    assert [row.image for row in outcome.rows] == [str(other)]
    part.unlink()
    assert predict(slide, out).rows[0].nuclei == outcome.rows[0].nuclei


def test_a_damaged_note_of_the_parts_is_told_and_dropped_when_told(slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict(slide, out, block_progress=stop_after(2))
    (out / "slide.parts" / "made-from.json").write_bytes(b"\xff\xfe")
    with pytest.raises(NucloraError, match=r"slide\.parts: there is unfinished .*: no sound made-from\.json; name"):
        predict(slide, out)
    assert predict(slide, out, overwrite=True).rows[0].nuclei > 30


def test_files_that_are_no_parts_are_passed_over(tmp_path: Path) -> None:
    for name in ("000012.npz", "1000000.npz", "copy of 000001.npz", "12.npz", "0000013.npz", "000014 (1).npz"):
        (tmp_path / name).touch()
    (tmp_path / "made-from.json").write_text("{}")
    assert Parts(tmp_path, {}).indices() == [12, 1_000_000]


def test_a_full_disk_keeps_what_is_done(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nuclora.inference import parts as of_parts

    write, calls = of_parts.write_atomic, 0

    def full(path: Path, content: bytes | str) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise NucloraError("cannot write (No space left on device)", path=path, mend="free some space")
        write(path, content)

    monkeypatch.setattr(of_parts, "write_atomic", full)
    with pytest.raises(NucloraError, match="No space left"):
        predict(slide, tmp_path / "out")
    monkeypatch.undo()
    assert len(list((tmp_path / "out" / "slide.parts").glob("*.npz"))) == 2


def test_a_slide_too_large_for_the_memory_stops_no_other(
    image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_slide(tmp_path / "in" / f"{name}.tif", image, 4.0)
    blocks_of = module.predict_blocks
    calls = 0

    def fail(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise MemoryError
        blocks_of(*arguments)

    monkeypatch.setattr(module, "predict_blocks", fail)
    outcome = predict(tmp_path / "in", tmp_path / "out")
    assert [Path(row.image).name for row in outcome.rows] == ["two.tif"]
    (failure,) = outcome.failures
    assert "one.tif: needs more memory than there is; leave it more memory" in str(failure)


def test_a_damaged_slide_is_no_image_to_the_options_of_slides(slide: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.tif"
    whole = slide.read_bytes()
    with tifffile.TiffFile(slide) as tiff:
        page = tiff.pages[0]
        end = max(offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True))
    for length in range(300, end, end // 40):
        damaged.write_bytes(whole[:length])
        require_slides(find_images([slide, damaged]))
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "image.png")
    with pytest.raises(NucloraError, match=r"image\.png: --region and --no-tissue-mask are for slides"):
        require_slides(find_images([slide, damaged, tmp_path / "image.png"]))


def test_a_region_of_a_slide(slide: Path, image: np.ndarray, tmp_path: Path) -> None:
    region = Region(30, 20, 121, 80)
    (row,) = predict(slide, tmp_path / "out", SlideOptions(region=region)).rows
    expected = SpotPredictor().nuclei(image[20:100, 30:151], SETTINGS)
    assert (row.width, row.height, row.nuclei) == (121, 80, len(expected.scores))
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / "slide.labels.tif") > 0, expected.labels > 0)
    with (tmp_path / "out" / "slide.csv").open(encoding="utf-8") as file:
        centroids = [(float(one["centroid_x"]), float(one["centroid_y"])) for one in csv.DictReader(file)]
    assert min(centroids)[0] >= 30
    assert min(y for _, y in centroids) >= 20
    assert read_image(tmp_path / "out" / "slide.overlay.png").shape == (80, 121, 3)


@pytest.mark.parametrize("adapters_microns", [None, 5.0])
def test_the_store_of_a_slide_is_that_of_its_region_as_a_whole(
    adapters_microns: float | None, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_zarr, "CHUNK", 48)
    out = tmp_path / "out"
    options = SlideOptions(region=Region(30, 20, 221, 140), adapters_microns=adapters_microns)
    predict(slide, out, options, formats=("labels", "zarr"))
    labels = read_labels(out / "slide.labels.tif")
    root = zarr.open_group(out / "slide.zarr", mode="r")
    np.testing.assert_array_equal(root["labels/nuclei/0"][...], labels)
    with open_canvas(slide, options) as canvas:
        image = canvas.read(range(canvas.shape[0]), range(canvas.shape[1]))
    np.testing.assert_array_equal(np.moveaxis(root["0"][...], 0, 2), image)
    step = adapters_microns or 4.0
    for group in (root, root["labels/nuclei"]):
        scale, translation = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
        assert scale["scale"][-2:] == [step, step]
        # The region's corner, from the outer edge of the slide's first pixel, whose centre is the origin.
        np.testing.assert_allclose(translation["translation"][-2:], [20 * 4 - 2 + step / 2, 30 * 4 - 2 + step / 2])
    grid = Grid(*labels.shape, step, tuple(translation["translation"]))
    whole = tmp_path / "whole" / "slide.zarr"
    write_zarr(
        whole,
        "slide.tif",
        grid,
        *(lambda r, c, of=of: of[r.start : r.stop, c.start : c.stop] for of in (image, labels)),
    )
    there, expected = (
        {file.relative_to(store): file.read_bytes() for file in store.rglob("*") if file.is_file()}
        for store in (out / "slide.zarr", whole)
    )
    assert there == expected
    assert len(root.attrs["ome"]["multiscales"][0]["datasets"]) >= 3


def test_a_slide_of_glass_has_outputs_without_nuclei(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "slide.tif", np.full((170, 260, 3), 245, np.uint8), 4.0)
    predictor = SpotPredictor()
    (row,) = predict(slide, tmp_path / "out", load=lambda: predictor).rows
    assert (row.nuclei, row.mean_area_px, row.tissue_mm2, predictor.seen) == (0, None, 0, 0)
    assert not read_labels(tmp_path / "out" / "slide.labels.tif").any()
    assert json.loads((tmp_path / "out" / "slide.geojson").read_text("utf-8"))["features"] == []
    header = (tmp_path / "out" / "slide.csv").read_text("utf-8").splitlines()
    assert len(header) == 1
    assert header[0].startswith("label,centroid_x,centroid_y,area_px,perimeter_px,area_um2")


def test_features_lie_where_qupath_looks_for_them(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QuPath shows of a slide what was scanned, and counts pixels from there."""
    predict(slide, tmp_path / "whole")
    monkeypatch.setattr(TiffSlide, "scanned", (30, 20), raising=False)
    predict(slide, tmp_path / "part")
    found = outputs(tmp_path / "part")
    rings, shifted = (
        [np.array(one["geometry"]["coordinates"][0]) for one in json.loads(text)["features"]]
        for text in (outputs(tmp_path / "whole")["slide.geojson"], found["slide.geojson"])
    )
    assert len(rings) == len(shifted) > 10
    for ring, other in zip(rings, shifted, strict=True):
        np.testing.assert_allclose(other, ring - [30, 20])
    # All else is in pixels of level 0.
    assert found["slide.csv"] == outputs(tmp_path / "whole")["slide.csv"]
    assert found["slide.coco.json"] == outputs(tmp_path / "whole")["slide.coco.json"]


def test_parts_whose_note_a_kill_left_out_are_begun_anew(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "slide.parts").mkdir(parents=True)
    (tmp_path / "out" / "slide.parts" / ".made-from.json.0123abcd.tmp").write_text('{"half')
    (tmp_path / "out" / ".slide.labels.tif.0123abcd.tmp").write_bytes(b"half a label map")
    predict(slide, tmp_path / "out")
    predict(slide, tmp_path / "unbroken")
    assert outputs(tmp_path / "out") == outputs(tmp_path / "unbroken")
    left, expected = (sorted(path.name for path in (tmp_path / out).iterdir()) for out in ("out", "unbroken"))
    assert left == expected


def test_slides_that_cannot_be_read_do_not_stop_the_others(image: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_slide(folder / "good.tif", image, 4.0)
    write_slide(folder / "no scale.tif", image)
    torn = write_slide(folder / "torn.tif", image, 4.0, levels=2)
    with tifffile.TiffFile(torn) as tiff:
        start, count = tiff.pages[0].dataoffsets[1], tiff.pages[0].databytecounts[1]
    content = bytearray(torn.read_bytes())
    content[start : start + count] = b"\xff" * count
    torn.write_bytes(content)
    (folder / "letter.svs").write_text("a letter")
    outcome = predict(folder, tmp_path / "out")
    assert [Path(row.image).name for row in outcome.rows] == ["good.tif"]
    told = {Path(str(error.path)).name: str(error) for error in outcome.failures}
    assert "give --mpp" in told["no scale.tif"]
    assert "cannot be read at" in told["torn.tif"]
    assert "OpenSlide" in told["letter.svs"]
    assert all("\n" not in line for line in told.values())


def test_a_nucleus_with_a_hole_keeps_its_rings_and_so_do_those_after_it(tmp_path):
    ring = np.array([[0, 0], [8, 0], [8, 8], [0, 8], [0, 0]], float)
    outlines = [[ring], [ring + 10, ring / 4 + 12], [ring[:3] + 30]]
    parts = Parts(tmp_path / "parts", {})
    parts.write(0, Found((3, 4), np.eye(3, dtype=np.int32), {"label": np.arange(1, 4)}, outlines), 1.0)
    found = parts.read(0).outlines
    assert [len(rings) for rings in found] == [1, 2, 1]
    for rings, expected in zip(found, outlines, strict=True):
        for one, other in zip(rings, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_slide_is_seen_in_as_many_views_as_are_asked_for(tmp_path):
    counts = set()

    class Counting(SpotPredictor):
        def window_planes(self, window, count):
            counts.add(count)
            return super().window_planes(window, count)

    path = write_slide(tmp_path / "slide.tif", spots(90, 90), 4.0)
    how = How({"adapter": {}, "settings": {}, "precision": "no"}, Counting, ("table",), SETTINGS.with_views(4))
    with open_outputs(tmp_path / "out") as folder:
        predict_images(find_images([path]), folder, how, engine=LocalEngine())
    assert counts == {4}
