"""Blocks: together they find what the whole canvas shows, each nucleus once and uncut."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile

from nuclora.errors import NucloraError
from nuclora.inference import blocks as module
from nuclora.inference.blocks import Block, find_nuclei, plan_blocks
from nuclora.inference.canvas import Canvas, Region, find_tissue, make_canvas, parse_region
from nuclora.inference.parts import Parts
from nuclora.inference.slides import predict_blocks
from nuclora.io.slides import open_slide
from nuclora.io.tables import measure_nuclei
from slide_makers import write_slide
from spots import SETTINGS, SpotPredictor, spots


@pytest.mark.parametrize("shape", [(1, 1), (63, 64), (500, 301), (700, 1500)])
@pytest.mark.parametrize("steps", [(1, 1), (2, 3), (4, 2)])
@pytest.mark.parametrize("lattice", [(64, 16), (512, 128)])
def test_cores_cover_the_canvas_once(shape, steps, lattice):
    covered = np.zeros(shape, dtype=np.uint8)
    blocks = list(plan_blocks(shape, lattice, steps))
    assert [block.index for block in blocks] == list(range(len(blocks)))
    for block in blocks:
        covered[block.rows.start : block.rows.stop, block.columns.start : block.columns.stop] += 1
        assert block.rows.start % 2 == block.columns.start % 2 == 0
        assert block.framed[0].start % 2 == 0
    assert covered.min() == covered.max() == 1


def test_a_block_of_four_by_two_steps_needs_five_by_three_windows():
    blocks = list(plan_blocks((20_000, 20_000), (512, 128)))
    inner = next(block for block in blocks if block.rows.start and block.columns.start)
    assert (len(inner.rows), len(inner.columns)) == (1536, 768)
    assert len(inner.windows()) == 15
    assert len(blocks[0].windows()) == 8


def tiled(
    image: np.ndarray, canvas: Canvas, steps: tuple[int, int], predictor: SpotPredictor
) -> tuple[np.ndarray, list]:
    """Labels of a canvas by blocks, as one map, and what each block found."""
    labels, count, all_found = np.zeros(canvas.shape, np.int32), 0, []
    for block in plan_blocks(canvas.shape, predictor.lattice, steps):
        pixels = canvas.read(*block.seen)
        maps = predictor.maps(pixels, 1, part=block.part)
        found = find_nuclei(block, maps, pixels, predictor, SETTINGS, canvas)
        top, left = found.origin
        part = labels[top : top + found.labels.shape[0], left : left + found.labels.shape[1]]
        assert not (part[found.labels > 0]).any(), "no nucleus is found twice"
        part[found.labels > 0] = found.labels[found.labels > 0] + count
        count += len(found.outlines)
        all_found.append(found)
    return labels, all_found


def assert_same_nuclei(labels: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the order of the numbers."""
    pairs = np.unique(np.stack([labels.ravel(), expected.ravel()]), axis=1)
    assert pairs.shape[1] == expected.max() + 1 == labels.max() + 1
    assert (np.sort(pairs, axis=1) == np.arange(expected.max() + 1)).all()


@pytest.fixture
def small_halo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HALO", 32)


@pytest.mark.parametrize(("steps", "region"), [
    ((1, 1), (0, 0, 260, 220)), ((3, 2), (0, 0, 260, 220)), ((3, 3), (0, 0, 260, 220)), ((1, 1), (13, 37, 202, 181)),
])  # fmt: skip
def test_blocks_find_what_the_whole_canvas_shows(steps, region, small_halo, tmp_path: Path) -> None:
    image = spots(220, 260)
    left, top, width, height = region
    expected = SpotPredictor().nuclei(image[top : top + height, left : left + width], SETTINGS)
    assert len(expected.scores) >= 50
    with open_slide(write_slide(tmp_path / "slide.tif", image, 0.25)) as slide:
        canvas = make_canvas(slide, Region(*region), None)
        labels, found = tiled(image, canvas, steps, SpotPredictor())
    assert len(found) > 1
    assert_same_nuclei(labels, expected.labels)
    # And so are scores and measurements, in pixels of level 0.
    measured = measure_nuclei(
        image[top : top + height, left : left + width], expected.labels, expected.scores, canvas.microns_per_pixel
    )
    measured["centroid_x"] += left
    measured["centroid_y"] += top
    ours = {name: np.concatenate([one.columns[name] for one in found]) for name in measured}
    order, expected_order = (np.lexsort((one["centroid_x"], one["centroid_y"])) for one in (ours, measured))
    for name in set(measured) - {"label"}:
        np.testing.assert_allclose(ours[name][order], measured[name][expected_order], rtol=1e-5, err_msg=name)


def test_a_resampled_slide_is_measured_in_its_own_pixels(small_halo, tmp_path: Path) -> None:
    image = np.kron(spots(150, 200, seed=4), np.ones((2, 2, 1), np.uint8))
    with open_slide(write_slide(tmp_path / "slide.tif", image, 0.25, levels=1)) as slide:
        canvas = make_canvas(slide, None, 0.5)
        assert (canvas.scale, canvas.shape) == (pytest.approx(2, rel=1e-4), (150, 200))
        canvas = Canvas(slide, canvas.region, 2.0, 0.25)
        labels, found = tiled(image, canvas, (2, 2), SpotPredictor())
        same = Canvas(slide, canvas.region, 2.0, 0.25)
    expected = SpotPredictor().nuclei(image[::2, ::2], SETTINGS)
    assert_same_nuclei(labels, expected.labels)
    measured = measure_nuclei(image[::2, ::2], expected.labels, expected.scores, 0.5)
    for name, factor in (("area_px", 4), ("perimeter_px", 2), ("area_um2", 1), ("perimeter_um", 1)):
        ours = np.concatenate([one.columns[name] for one in found])
        np.testing.assert_allclose(np.sort(ours), np.sort(measured[name]) * factor, rtol=1e-9)
    one = found[0]
    for rings, x, y in zip(one.outlines, one.columns["centroid_x"], one.columns["centroid_y"], strict=True):
        low, high = rings[0].min(axis=0), rings[0].max(axis=0)
        assert low[0] < x < high[0]
        assert low[1] < y < high[1]
        assert not (np.concatenate(rings) % 1).any(), "halves of two pixels"
    assert same.shape == canvas.shape


def test_windows_of_glass_and_those_of_the_block_before_are_not_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As large beside these windows as it is beside those in use.
    monkeypatch.setattr(module, "HALO", 16)
    image = np.full((240, 400, 3), 245, np.uint8)
    image[:, :200] = spots(240, 200)
    with open_slide(write_slide(tmp_path / "slide.tif", image, 4.0)) as slide:
        canvas = make_canvas(slide, None, None)
        tissue = find_tissue(canvas)
        predictor, everywhere = SpotPredictor(), SpotPredictor()
        blocks = list(plan_blocks(canvas.shape, predictor.lattice, (3, 3)))
        predict_blocks(canvas, blocks, tissue, predictor, SETTINGS, Parts(tmp_path / "a", {}))
        predict_blocks(canvas, blocks, find_tissue(canvas, True), everywhere, SETTINGS, Parts(tmp_path / "b", {}))
    starts = [range(0, length - 16, 48) for length in canvas.shape]
    assert everywhere.seen < 1.6 * len(starts[0]) * len(starts[1])
    assert predictor.seen < 0.75 * everywhere.seen
    ours, theirs = (list(Parts(tmp_path / name, {}).numbered()) for name in "ab")
    assert sum(len(found.outlines) for _, _, found in ours) == sum(len(found.outlines) for _, _, found in theirs) > 30
    assert tissue.mm2 == pytest.approx(0.5 * 240 * 400 * 16e-6, rel=0.1)


@pytest.fixture
def island() -> np.ndarray:
    """Glass of 4 microns a pixel with a square of tissue and a little dust."""
    image = np.full((600, 700, 3), 245, np.uint8)
    image[200:320, 250:400] = image[452:458, 502:508] = (120, 70, 150)
    return image


@pytest.mark.parametrize(
    ("region", "shows_tissue"),
    [
        # Corners of the tissue, each less than a speck; the slide's corner; across the tissue.
        (Region(225, 175, 40, 40), True),
        (Region(390, 310, 40, 50), True),
        (Region(0, 0, 300, 250), True),
        (Region(100, 225, 500, 50), True),
        # Dust, whole and cut.
        (Region(475, 425, 75, 75), False),
        (Region(505, 455, 195, 145), False),
    ],
)
def test_a_region_shows_the_tissue_that_the_whole_slide_shows_there(
    region: Region, shows_tissue: bool, island: np.ndarray, tmp_path: Path
) -> None:
    with open_slide(write_slide(tmp_path / "slide.tif", island, 4.0)) as slide:
        whole = find_tissue(make_canvas(slide, None, None))
        found = find_tissue(make_canvas(slide, region, None))
    top, left = round(region.top / 2.5), round(region.left / 2.5)
    expected = whole.mask[top : top + round(region.height / 2.5), left : left + round(region.width / 2.5)]
    np.testing.assert_array_equal(found.mask, expected)
    assert found.mask.any() == shows_tissue
    assert found.mm2 == pytest.approx(region.width * region.height * 16e-6 * expected.mean())


def test_a_region_beside_a_damaged_place_shows_its_own_tissue(island: np.ndarray, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "slide.tif", island, 4.0, levels=1)
    with tifffile.TiffFile(path) as tiff:
        # The last tile of the sixth row, of eleven in a row.
        start, count = tiff.pages[0].dataoffsets[65], tiff.pages[0].databytecounts[65]
    content = bytearray(path.read_bytes())
    content[start : start + count] = b"\xff" * count
    path.write_bytes(content)
    with open_slide(path) as slide:
        assert find_tissue(make_canvas(slide, Region(390, 310, 200, 40), None)).mask[0, 0]
        with pytest.raises(NucloraError, match="cannot be read"):
            find_tissue(make_canvas(slide, None, None))


def test_a_canvas_takes_whole_pixels_of_the_region_at_the_adapters_scale(tmp_path: Path) -> None:
    with open_slide(write_slide(tmp_path / "slide.tif", spots(200, 300), 0.5)) as slide:
        canvas = make_canvas(slide, Region(10, 20, 101, 55), 0.25)
        assert canvas.shape == (110, 202)
        np.testing.assert_array_equal(canvas.read(range(0, 110), range(0, 202)), slide.read(10, 20, 101, 55, 0.5))
        assert make_canvas(slide, None, 0.501).scale == 1
        assert make_canvas(slide, None, None).shape == (200, 300)
        for region in ((-1, 0, 5, 5), (0, 0, 301, 5), (0, 196, 5, 5)):
            with pytest.raises(NucloraError, match=r"slide\.tif: the region .* reaches beyond the slide's 300 x 200"):
                make_canvas(slide, Region(*region), None)
        slide.microns_per_pixel = None
        with pytest.raises(NucloraError, match=r"slide\.tif: the file does not say .*; give --mpp"):
            make_canvas(slide, None, 0.25)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "0,0,0,5", "0,0,5,-1", "1.5,0,5,5"])
def test_what_is_no_region_is_refused(text: str) -> None:
    with pytest.raises(NucloraError, match="region"):
        parse_region(text)


def test_a_region_is_read() -> None:
    assert parse_region("1, 2,30,40") == (1, 2, 30, 40)


def test_all_blocks_that_see_a_nucleus_agree_on_its_owner() -> None:
    """Two halves of a canvas and a nucleus between them, wherever it lies."""
    labels = np.zeros((60, 400), np.int32)
    from nuclora.inference.blocks import own
    from nuclora.inference.predictor import Nuclei

    cores = (range(200), range(200, 400))
    halves = [Block(index, range(60), core, (60, 400), (64, 16)) for index, core in enumerate(cores)]
    for left, width in itertools.product(range(170, 205), (1, 2, 5, 24, 25)):
        labels[:] = 0
        labels[3:9, left : left + width] = 1
        owners = []
        for half in halves:
            columns = half.framed[1]
            seen = Nuclei(labels[:, columns.start : columns.stop], np.ones(1, np.float32))
            owners.append(len(own(seen, half).scores))
        assert sum(owners) == 1


@pytest.mark.parametrize("adapters_microns", [None, 2.0, 8.0])
def test_tissue_is_looked_up_where_it_lies_at_any_scale(adapters_microns, island, tmp_path):
    with open_slide(write_slide(tmp_path / "slide.tif", island, 4.0)) as slide:
        canvas = make_canvas(slide, None, adapters_microns)
        tissue = find_tissue(canvas)

    def meets(rows, columns):
        return tissue.meets(
            *(range(int(first / canvas.scale), int(stop / canvas.scale)) for first, stop in (rows, columns))
        )

    # Two pixels at each corner and in the middle; far to all sides.
    for row, column in ((204, 254), (204, 394), (314, 254), (314, 394), (260, 325)):
        assert meets((row, row + 2), (column, column + 2))
    for rows, columns in (((0, 150), (0, 700)), ((370, 600), (0, 700)), ((0, 600), (0, 200)), ((0, 600), (450, 700))):
        assert not meets(rows, columns)
