"""Slides: any rectangle at any scale, how large a pixel is, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from nuclora.errors import NucloraError
from nuclora.io import pyramid
from nuclora.io.microns import _by_ome, of_openslide
from nuclora.io.slides import OpenSlideSlide, TiffSlide, is_slide, open_slide
from slide_makers import halve, write_dicom, write_slide


def picture(height: int, width: int) -> np.ndarray:
    """Coarse blobs of colour with a little noise: like tissue, it survives being halved."""
    generator = np.random.default_rng(height + width)
    coarse = generator.integers(40, 220, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + generator.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def image() -> np.ndarray:
    return picture(230, 301)


@pytest.mark.parametrize("kind", ["pyramid", "ome", "strips", "jpeg"])
def test_level_0_is_read_as_it_is_wherever_one_asks(kind: str, image: np.ndarray, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "pyramid": {},
        "ome": {"ome": True},
        "strips": {"tile": 0, "levels": 1},
        "jpeg": {"compression": "jpeg", "compressionargs": {"level": 100}},
    }[kind]
    path = tmp_path / "slide.tif"
    if kind == "strips":
        tifffile.imwrite(path, image, photometric="rgb", rowsperstrip=50, compression="zlib", metadata=None)
    else:
        write_slide(path, image, 0.5, **options)
    expected = tifffile.imread(path, key=0)
    generator = np.random.default_rng(0)
    with open_slide(path) as slide:
        assert (slide.width, slide.height) == (301, 230)
        assert len(slide.levels) == (1 if kind == "strips" else 2)
        np.testing.assert_array_equal(slide.read(0, 0, 301, 230), expected)
        for _ in range(10):
            left, top = int(generator.integers(0, 300)), int(generator.integers(0, 229))
            width, height = int(generator.integers(1, 302 - left)), int(generator.integers(1, 231 - top))
            part = slide.read(left, top, width, height)
            np.testing.assert_array_equal(part, expected[top : top + height, left : left + width])


def test_beyond_the_slide_is_glass(image: np.ndarray, tmp_path: Path) -> None:
    with open_slide(write_slide(tmp_path / "slide.tif", image)) as slide:
        part = slide.read(-10, 220, 40, 30)
        np.testing.assert_array_equal(part[:10, 10:], image[220:, :30])
        assert (part[10:] == 255).all()
        assert (part[:, :10] == 255).all()
        assert (slide.read(1000, 1000, 8, 8, 2.0) == 255).all()


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.7, 1.3, 1.7, 3.0])
@pytest.mark.parametrize("shape", [(64, 64), (63, 37), (5, 1)])
def test_the_slides_edge_is_as_dark_as_the_rest(scale: float, shape: tuple[int, int], tmp_path: Path) -> None:
    height, width = shape
    with open_slide(write_slide(tmp_path / "slide.tif", np.full((*shape, 3), 120, np.uint8), levels=1)) as slide:
        assert (slide.read(0, 0, width, height, scale) == 120).all()
        part = slide.read(-8 * scale, -4 * scale, width + 16 * scale, height + 8 * scale, scale)
    rows, columns = (np.flatnonzero((part == 120).all(axis=2).any(axis=axis)) for axis in (1, 0))
    assert (rows[0], rows[-1]) == (4, 3 + np.ceil(height / scale))
    assert (columns[0], columns[-1]) == (8, 7 + np.ceil(width / scale))
    part[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 255
    assert (part == 255).all(), "beyond it is glass"


@pytest.mark.parametrize("scale", [1.25, 2.0, 3.7, 8.0])
def test_a_smaller_picture_is_the_mean_over_its_pixels_areas(scale: float, tmp_path: Path) -> None:
    image = picture(240, 320)
    with open_slide(write_slide(tmp_path / "slide.tif", image)) as slide:
        small = slide.read(16, 32, 256, 192, scale)
    assert small.shape == (round(192 / scale), round(256 / scale), 3)
    # Forty points in each pixel of the result, one way.
    places = [origin + (np.arange(n * 40) + 0.5) * scale / 40 for origin, n in zip((32, 16), small.shape, strict=False)]
    points = image[np.minimum(places[0], 239).astype(int)][:, np.minimum(places[1], 319).astype(int)].astype(float)
    expected = points.reshape(small.shape[0], 40, small.shape[1], 40, 3).mean(axis=(1, 3))
    # The coarser level was rounded before.
    assert np.abs(small - expected).max() < (8 if scale == 3.7 else 1.3)
    assert np.abs(small - expected).mean() < (1.0 if scale == 3.7 else 0.5)


def test_a_larger_picture_is_interpolated(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[...] = np.arange(64, dtype=np.uint8)[None, :, None] * 3
    with open_slide(write_slide(tmp_path / "slide.tif", image, levels=1)) as slide:
        large = slide.read(8, 8, 32, 32, 0.5)
    assert large.shape == (64, 64, 3)
    expected = ((8 + (np.arange(64) + 0.5) * 0.5) - 0.5) * 3
    np.testing.assert_allclose(large[5, :, 0], expected, atol=0.51)


@pytest.mark.parametrize("scale", [0.7, 1.002, 2.3, 5.0])
def test_a_pixel_is_the_same_whichever_rectangle_it_is_read_in(scale: float, image: np.ndarray, tmp_path: Path) -> None:
    with open_slide(write_slide(tmp_path / "slide.tif", image, levels=3)) as slide:
        whole = slide.read(7, 3, 280, 220, scale)
        rows, columns = whole.shape[:2]
        for top, left in ((0, 0), (3, 11), (rows // 2, columns // 3)):
            height, width = rows // 2, columns // 2
            part = slide.read(7 + left * scale, 3 + top * scale, width * scale, height * scale, scale)
            np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


def test_a_coarse_picture_is_read_from_a_coarse_level(
    image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(write_slide(tmp_path / "slide.tif", image, levels=3)) as slide:
        read, levels = slide.read_level, []

        def watch(level: int, *rectangle: int) -> np.ndarray:
            levels.append(level)
            return read(level, *rectangle)

        monkeypatch.setattr(slide, "read_level", watch)
        for scale in (0.5, 1.0, 1.9, 2.0, 3.9, 4.0, 30.0):
            slide.read(0, 0, 200, 200, scale)
    assert levels == [0, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("ome", [False, True])
def test_the_file_says_how_large_a_pixel_is_unless_told(ome: bool, image: np.ndarray, tmp_path: Path) -> None:
    known = write_slide(tmp_path / "known.ome.tif" if ome else tmp_path / "known.tif", image, 0.25, ome=ome)
    unknown = write_slide(tmp_path / "unknown.ome.tif" if ome else tmp_path / "unknown.tif", image, ome=ome)
    dpi = tmp_path / "dpi.tif"
    # 72 dots an inch is what drawing programs write into everything.
    tifffile.imwrite(dpi, image, photometric="rgb", resolution=(72, 72), resolutionunit="INCH", metadata=None)
    for path, given, expected in ((known, None, 0.25), (known, 0.4, 0.4), (unknown, None, None), (dpi, None, None)):
        with open_slide(path, given) as slide:
            assert slide.microns_per_pixel == (pytest.approx(expected, rel=1e-4) if expected else None)


@pytest.mark.parametrize(
    ("properties", "microns"),
    [
        ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.27", "openslide.objective-power": "20"}, 0.26),
        ({"openslide.objective-power": "40"}, 0.25),
        ({"openslide.objective-power": "0", "tiff.ResolutionUnit": "inch", "tiff.XResolution": "50800"}, 0.5),
        ({"openslide.mpp-x": "254", "openslide.mpp-y": "254"}, None),
        ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0"}, 0.25),
        ({"tiff.ResolutionUnit": "inch", "tiff.XResolution": "96"}, None),
        ({"openslide.mpp-x": "?"}, None),
        ({}, None),
    ],
)
def test_microns_by_the_properties_of_openslide(properties: dict[str, str], microns: float | None) -> None:
    found = of_openslide(properties)
    assert found == (pytest.approx(microns) if microns else None)


@pytest.mark.parametrize(
    ("pixels", "options", "told"),
    [
        (np.zeros((90, 90, 3), np.uint16), {}, "uint16 slide where 8 bits"),
        (np.zeros((90, 90), np.uint8), {"photometric": "minisblack"}, "not an RGB slide: 1 channel"),
        (np.zeros((3, 90, 90), np.uint8), {"planarconfig": "separate"}, "stored apart"),
        (np.zeros((90, 90, 4), np.uint8), {"photometric": "separated"}, "not an RGB slide: 4 channel"),
        # Only JPEG is decoded to RGB.
        (np.zeros((90, 90, 3), np.uint8), {"photometric": "ycbcr", "subsampling": (1, 1)}, "not an RGB slide.*YCBCR"),
    ],
)
def test_what_is_no_brightfield_slide_is_refused(
    pixels: np.ndarray, options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = write_slide(tmp_path / "slide.tif", pixels, levels=1, **options)
    with pytest.raises(NucloraError, match=told) as error:
        open_slide(path)
    assert error.value.path == path


def test_no_slide_at_all_is_refused(tmp_path: Path) -> None:
    for name in ("letter.tif", "letter.svs"):
        (tmp_path / name).write_text("a letter")
        with pytest.raises(NucloraError, match="cannot"):
            open_slide(tmp_path / name)
    with pytest.raises(NucloraError, match="no such file"):
        open_slide(tmp_path / "none.svs")


def test_a_damaged_tile_names_the_file_and_the_place(image: np.ndarray, tmp_path: Path) -> None:
    path = write_slide(tmp_path / "slide.tif", image, levels=1)
    with tifffile.TiffFile(path) as tiff:
        # Of five tiles in a row, the second of the third row.
        start, count = tiff.pages[0].dataoffsets[11], tiff.pages[0].databytecounts[11]
    content = bytearray(path.read_bytes())
    content[start : start + count] = b"\xff" * count
    path.write_bytes(content)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 301, 128), image[:128])
        with pytest.raises(NucloraError, match=r"slide\.tif: cannot be read at 70,130,20,20 \(x,y,width,height"):
            slide.read(70, 130, 20, 20)


def test_openslide_reads_what_is_sound_after_what_is_damaged(tmp_path: Path, shared_data: Path) -> None:
    pytest.importorskip("openslide")
    whole = shared_data / "slides" / "cmu_small_region.svs"
    with tifffile.TiffFile(whole) as tiff:
        # Of ten tiles of 240 pixels in a row, the third of the third row.
        start, count = tiff.pages[0].dataoffsets[22], tiff.pages[0].databytecounts[22]
    content = bytearray(whole.read_bytes())
    content[start : start + count] = b"\xff" * count
    path = tmp_path / "slide.svs"
    path.write_bytes(content)
    with open_slide(path) as slide, open_slide(whole) as sound:
        with pytest.raises(NucloraError, match=r"slide\.svs: cannot be read at 500,500,20,20 \(x,y,width,height"):
            slide.read(500, 500, 20, 20)
        np.testing.assert_array_equal(slide.read(0, 0, 100, 100), sound.read(0, 0, 100, 100))


def test_a_file_that_is_cut_short_is_named(image: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, image, photometric="rgb", rowsperstrip=10, metadata=None)
    path.write_bytes(path.read_bytes()[:-200])
    with open_slide(path) as slide, pytest.raises(NucloraError, match="cut short"):
        slide.read(0, 200, 30, 30)


def test_which_files_are_slides(image: np.ndarray, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "plain.tif", image, photometric="rgb")
    (tmp_path / "letter.tif").write_text("a letter")
    assert not is_slide(tmp_path / "plain.tif", 230 * 301)
    assert is_slide(tmp_path / "plain.tif", 230 * 301 - 1)
    assert is_slide(write_slide(tmp_path / "pyramid.tif", image), 10**9)
    assert is_slide(tmp_path / "any.SVS", 10**9)
    assert not is_slide(tmp_path / "any.png", 1)
    assert not is_slide(tmp_path / "letter.tif", 1)


def test_openslide_is_asked_for_by_name_where_it_is_needed(
    image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    (tmp_path / "a.svs").touch()
    with pytest.raises(NucloraError, match=r"needs OpenSlide; install it: pip install 'nuclora\[slides\]'"):
        open_slide(tmp_path / "a.svs")
    with open_slide(write_slide(tmp_path / "slide.tif", image)) as slide:
        assert isinstance(slide, TiffSlide)


def test_openslide_reads_what_tifffile_reads(image: np.ndarray, tmp_path: Path) -> None:
    openslide = pytest.importorskip("openslide")
    path = write_slide(tmp_path / "slide.tif", image, 0.25)
    with OpenSlideSlide(openslide, path, None) as slide, TiffSlide(path, None) as same:
        assert slide.levels == same.levels
        assert slide.microns_per_pixel == pytest.approx(0.25, rel=1e-4)
        for left, top, width, height, scale in ((5, 7, 200, 100, 1.0), (0, 0, 301, 230, 2.0), (40, 8, 160, 160, 0.5)):
            ours, theirs = (one.read(left, top, width, height, scale).astype(int) for one in (slide, same))
            # Levels of an odd width lie between the pixels for OpenSlide.
            assert np.abs(ours - theirs).mean() < (0.01 if scale <= 1 else 6)


def test_a_picture_with_the_suffix_of_a_slide_is_told(tmp_path: Path) -> None:
    pytest.importorskip("openslide")
    Image.new("RGB", (9, 9)).save(tmp_path / "x.svs", format="png")
    with pytest.raises(NucloraError, match=r"x\.svs: OpenSlide cannot.*; it is a PNG file: rename it to x\.png$"):
        open_slide(tmp_path / "x.svs")
    # The first file of an MRXS is a JPEG: what OpenSlide misses are the others.
    Image.new("RGB", (9, 9)).save(tmp_path / "x.mrxs", format="jpeg")
    with pytest.raises(NucloraError, match=r"x\.mrxs: OpenSlide cannot.*; the file is damaged or no slide: get it"):
        open_slide(tmp_path / "x.mrxs")


def test_a_slide_in_dicom_is_found_by_any_of_its_files(image: np.ndarray, tmp_path: Path) -> None:
    pytest.importorskip("openslide")
    coarsest = write_dicom(tmp_path / "slide", image, 0.5)
    for path in (coarsest, coarsest.with_name("level-0.dcm")):
        assert is_slide(path, 10**9)
        with open_slide(path) as slide:
            assert slide.levels == [(301, 230), (150, 115)]
            assert slide.microns_per_pixel == pytest.approx(0.5)
            assert slide.identity
            np.testing.assert_array_equal(slide.read(0, 0, 301, 230), image)
            np.testing.assert_array_equal(slide.read(20, 40, 100, 80), image[40:120, 20:120])
    path.write_bytes(b"DICM of another kind")
    with pytest.raises(NucloraError, match=r"level-0\.dcm: OpenSlide cannot read it"):
        open_slide(path)


def test_what_is_transparent_is_glass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: np.ndarray) -> None:
    openslide = pytest.importorskip("openslide")
    alpha = np.full((10, 20, 1), 255, np.uint8)
    alpha[:, 10:], alpha[:, :4] = 0, 102
    seen = Image.fromarray(np.concatenate([np.full((10, 20, 3), 55, np.uint8), alpha], axis=2))
    slide = OpenSlideSlide(openslide, write_slide(tmp_path / "slide.tif", image), None)
    monkeypatch.setattr(slide, "_slide", type("Seen", (), {
        "level_downsamples": [1.0], "read_region": lambda self, place, level, size: seen,
    })())  # fmt: skip
    pixels = slide.read(0, 0, 20, 10)
    assert (pixels[:, 10:] == 255).all()
    assert (pixels[:, 4:10] == 55).all()
    # Two fifths of it, on white.
    assert (pixels[:, :4] == 175).all()


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_what_is_transparent_in_a_tiff_is_glass(kind: str, tmp_path: Path) -> None:
    pixels = np.full((64, 64, 4), 55, np.uint8)
    pixels[..., 3], pixels[:, 32:, 3] = 255, 102
    if kind == "assocalpha":
        pixels[:, 32:, :3] = 22
    write_slide(tmp_path / "slide.tif", pixels, 0.5, extrasamples=[kind])
    with TiffSlide(tmp_path / "slide.tif", None) as slide:
        seen = slide.read(0, 0, 64, 64)
    assert seen.shape == (64, 64, 3)
    assert (seen[:, :32] == 55).all()
    # Two fifths of it, on white; a fourth channel of another meaning says nothing.
    assert (seen[:, 32:] == (55 if kind == "unspecified" else 175)).all()


@pytest.mark.parametrize(
    ("bounds", "scanned"),
    [
        ({"x": "1000", "y": "2000", "width": "500", "height": "400"}, (1000, 2000)),
        ({"x": "1000", "y": "2000"}, (0, 0)),
        ({"x": "1000", "y": "2000", "width": "500", "height": "wide"}, (0, 0)),
        ({}, (0, 0)),
    ],
)
def test_where_the_scan_begins(bounds: dict[str, str], scanned: tuple[int, int]) -> None:
    class Opened:
        level_dimensions = ((4000, 4000),)

        def __init__(self, path: str) -> None:
            self.properties = {f"openslide.bounds-{name}": value for name, value in bounds.items()}

    library = ModuleType("openslide")
    vars(library).update(OpenSlide=Opened, OpenSlideError=OSError, PROPERTY_NAME_QUICKHASH1="openslide.quickhash-1")
    assert OpenSlideSlide(library, Path("slide.mrxs"), None).scanned == scanned


def test_a_tiff_damaged_anywhere_is_told_by_name(image: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    # Strips, so that most of a small file is tags.
    tifffile.imwrite(path, image[:8, :8], photometric="rgb", resolution=(20000, 20000), resolutionunit="CENTIMETER")
    sound = path.read_bytes()
    generator = np.random.default_rng(0)
    told = []
    for _ in range(1500):
        content = bytearray(sound)
        for place in generator.integers(0, len(content) - 192, 3):
            content[place] = generator.choice([0, 1, 255, generator.integers(256)])
        path.write_bytes(content)
        assert is_slide(path, 10**9) in (False, True, None)
        try:
            with TiffSlide(path, None) as slide:
                slide.read(0, 0, 8, 8)
        except NucloraError as error:
            told.append(error.path)
    assert 100 < len(told) < 1500
    assert set(told) == {path}


@pytest.mark.parametrize(
    ("name", "size", "microns"), [("cmu_small_region", (2220, 2967), 0.499), ("tcga-cr-7395", (4443, 3567), None)]
)
def test_real_slides(name: str, size: tuple[int, int], microns: float | None, shared_data: Path) -> None:
    pytest.importorskip("openslide")
    with open_slide(shared_data / "slides" / f"{name}.svs") as slide:
        assert (slide.width, slide.height) == size
        assert slide.microns_per_pixel == microns
        fine = slide.read(512, 512, 512, 512)
        half = slide.read(512, 512, 512, 512, 2.0).astype(int)
        # The coarser level is another compression, and lies up to a pixel apart.
        assert np.abs(half - halve(fine)).mean() < (1.01 if len(slide.levels) == 1 else 12)


def test_tiles_need_not_be_square(image, tmp_path):
    tifffile.imwrite(tmp_path / "slide.tif", image, photometric="rgb", tile=(32, 80), compression="zlib", metadata=None)
    with TiffSlide(tmp_path / "slide.tif", None) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 301, 230), image)
        np.testing.assert_array_equal(slide.read(90, 40, 150, 77), image[40:117, 90:240])


def test_a_tile_that_the_file_leaves_out_is_glass(tmp_path):
    there = np.full((64, 64, 3), 50, np.uint8)
    options = {"shape": (64, 128, 3), "dtype": np.uint8, "tile": (64, 64), "photometric": "rgb", "metadata": None}
    tifffile.imwrite(tmp_path / "slide.tif", iter([there, None]), **options)
    with TiffSlide(tmp_path / "slide.tif", None) as slide:
        seen = slide.read(0, 0, 128, 64)
    assert (seen[:, :64] == 50).all()
    assert (seen[:, 64:] == 255).all()


def test_openslide_gives_a_pixel_of_a_coarser_level_whatever_is_read_with_it(image, tmp_path):
    openslide = pytest.importorskip("openslide")
    # Of odd sides: the levels' pixels do not lie under each other.
    with OpenSlideSlide(openslide, write_slide(tmp_path / "slide.tif", image), None) as slide:
        whole = slide.read_level(1, 0, 0, *slide.levels[1])
        np.testing.assert_array_equal(slide.read_level(1, 41, 33, 70, 50), whole[33:83, 41:111])


@pytest.mark.parametrize("scale", [0.7, 2.3])
def test_a_picture_read_in_pieces_is_the_same(scale, image, tmp_path, monkeypatch):
    with open_slide(write_slide(tmp_path / "slide.tif", image)) as slide:
        whole = slide.read(-5, 3, 280, 220, scale)
        monkeypatch.setattr(pyramid, "_AT_ONCE", 40)
        np.testing.assert_array_equal(slide.read(-5, 3, 280, 220, scale), whole)


@pytest.mark.parametrize(
    ("sizes", "microns"),
    [
        ('PhysicalSizeX="0.4" PhysicalSizeY="0.6"', 0.5),
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="µm"', 0.5),
        ('PhysicalSizeX="500" PhysicalSizeXUnit="nm"', 0.5),
        ('PhysicalSizeX="5e-4" PhysicalSizeXUnit="mm"', 0.5),
        ('PhysicalSizeX="5e-5" PhysicalSizeXUnit="cm"', 0.5),
        ('PhysicalSizeX="5e-7" PhysicalSizeXUnit="m"', 0.5),
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="pixel"', None),
        ("", None),
    ],
)
def test_microns_by_ome_xml_of_any_unit(sizes, microns):
    xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels {sizes}/></Image></OME>'
    assert _by_ome(xml) == (pytest.approx(microns) if microns else None)


@pytest.mark.parametrize(
    ("unit", "in_one"), [("INCH", 25_400), ("CENTIMETER", 10_000), ("MILLIMETER", 1_000), ("MICROMETER", 1)]
)
def test_microns_by_the_resolution_of_both_axes_in_any_unit(unit, in_one, image, tmp_path):
    resolution = in_one / 0.4, in_one / 0.6
    tifffile.imwrite(
        tmp_path / "slide.tif", image, photometric="rgb", resolution=resolution, resolutionunit=unit, metadata=None
    )
    with TiffSlide(tmp_path / "slide.tif", None) as slide:
        assert slide.microns_per_pixel == pytest.approx(0.5, rel=1e-3)
