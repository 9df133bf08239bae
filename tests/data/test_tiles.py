from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from nuclora.data import Tile, open_tiles
from nuclora.data.images import image_shape, read_image, read_labels, read_mask
from nuclora.errors import NucloraError


def rgb(shape: tuple[int, ...] = (20, 30, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "TIFF"])
def test_lossless_images_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    pixels = rgb()
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(pixels).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels)
    image[0, 0] = 0  # training writes into what it reads


def test_jpeg_is_read_as_pillow_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.fromarray(rgb()).save(path)
    np.testing.assert_array_equal(read_image(path), np.asarray(Image.open(path)))


def test_grey_becomes_rgb(tmp_path: Path) -> None:
    grey = rgb((20, 30))
    for name, path in (("png", tmp_path / "x.png"), ("tif", tmp_path / "x.tif")):
        Image.fromarray(grey).save(path)
        np.testing.assert_array_equal(read_image(path), np.stack([grey] * 3, axis=2), err_msg=name)


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    pixels = rgb((20, 30, 4))
    Image.fromarray(pixels).save(tmp_path / "x.png")
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), pixels[..., :3])
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), pixels[..., :3])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_palette_becomes_its_colours(tmp_path: Path, suffix: str) -> None:
    indices = np.arange(600, dtype=np.uint8).reshape(20, 30) % 4
    image = Image.fromarray(indices)
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    path = tmp_path / f"x.{suffix}"
    image.save(path, **({"transparency": b"\x00\x80\xff\x10"} if suffix == "png" else {}))
    expected = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]])[indices]
    np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_is_converted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path)
    image = read_image(path)
    assert image.shape == (8, 8, 3)
    red, green, blue = image[4, 4].astype(int)
    assert red > 200
    assert green < 60
    assert blue < 60


def test_planes_stored_apart_are_put_together(tmp_path: Path) -> None:
    pixels = rgb()
    tifffile.imwrite(tmp_path / "x.tif", np.moveaxis(pixels, 2, 0), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), pixels)


@pytest.mark.parametrize("options", [{}, {"compression": "jpeg"}])
def test_cmyk_tiff_is_converted_whatever_its_compression(tmp_path: Path, options: dict[str, str]) -> None:
    Image.new("CMYK", (16, 16), (55, 155, 205, 0)).save(tmp_path / "x.tif", **options)
    np.testing.assert_allclose(read_image(tmp_path / "x.tif")[4, 4], (200, 100, 50), atol=2)


def test_a_thumbnail_beside_cmyk_is_passed_over(tmp_path: Path) -> None:
    cmyk = np.full((16, 16, 4), (55, 155, 205, 0), np.uint8)
    with tifffile.TiffWriter(tmp_path / "x.tif") as tiff:
        tiff.write(cmyk, photometric="separated", metadata=None)
        tiff.write(cmyk[::2, ::2], photometric="separated", subfiletype=1, metadata=None)
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), np.full((16, 16, 3), (200, 100, 50)))


@pytest.mark.parametrize(("mode", "options"), [("YCbCr", {}), ("RGB", {"compression": "jpeg"}), ("LAB", {})])
def test_other_colours_become_rgb(tmp_path: Path, mode: str, options: dict[str, str]) -> None:
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    image.convert(mode).save(tmp_path / "x.tif", **options)
    np.testing.assert_allclose(read_image(tmp_path / "x.tif")[4, 4], (200, 100, 50), atol=2)


def test_grey_with_alpha_and_inverted_grey_become_rgb(tmp_path: Path) -> None:
    grey = rgb((20, 30))
    expected = np.stack([grey] * 3, axis=2)
    for suffix in ("png", "tif"):
        Image.merge("LA", (Image.fromarray(grey), Image.new("L", (30, 20), 90))).save(tmp_path / f"x.{suffix}")
        np.testing.assert_array_equal(read_image(tmp_path / f"x.{suffix}"), expected)
    tifffile.imwrite(tmp_path / "white.tif", grey, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "white.tif"), 255 - expected)


def test_images_of_one_pixel(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "tif", "bmp", "webp"):
        Image.new("RGB", (1, 1), (200, 200, 200)).save(tmp_path / f"x.{suffix}")
        np.testing.assert_allclose(read_image(tmp_path / f"x.{suffix}"), np.full((1, 1, 3), 200), atol=2)


@pytest.mark.parametrize(
    ("pixels", "options", "told"),
    [
        (np.zeros((9, 9), np.int8), {}, "int8 image where 8 bits"),
        (np.zeros((9, 9), np.float32), {}, "float32 image where 8 bits"),
        (np.zeros((9, 9, 3), np.float64), {"photometric": "rgb"}, "float64 image where 8 bits"),
        (np.zeros((9, 9), np.uint16), {}, "uint16 image where 8 bits"),
        (np.zeros((9, 9, 4), np.uint16), {"photometric": "separated"}, "uint16 image where 8 bits"),
        (np.zeros((9, 9), bool), {}, "1-bit image where 8 bits"),
        (np.zeros((9, 9), np.uint8), {"bitspersample": 4}, "4-bit image where 8 bits"),
        (np.zeros((9, 9, 5), np.uint8), {"photometric": "minisblack", "planarconfig": "contig"}, "not a grey or RGB"),
        (np.zeros((9, 9, 2), np.uint8), {"photometric": "minisblack", "planarconfig": "contig"}, "not a grey or RGB"),
        (np.zeros((9, 9, 3), np.uint8), {"photometric": 32845}, "colours of the kind LOGLUV"),
    ],
)
def test_tiffs_of_other_values_are_refused_by_name_with_a_mend(
    pixels: np.ndarray, options: dict[str, object], told: str, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "x.tif", pixels, metadata=None, **options)
    with pytest.raises(NucloraError, match=rf"x\.tif: .*{told}.*; (convert|save)"):
        read_image(tmp_path / "x.tif")


def test_black_and_white_and_moving_pictures_are_refused(tmp_path: Path) -> None:
    Image.new("1", (9, 9)).save(tmp_path / "x.png")
    with pytest.raises(NucloraError, match=r"x\.png: 1-bit image where 8 bits"):
        read_image(tmp_path / "x.png")
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(NucloraError, match=r"x\.webp: 2 pages where one is expected; save one"):
        read_image(tmp_path / "x.webp")


def write_png16(path: Path, pixels: np.ndarray) -> None:
    """Pillow cannot write 16-bit RGB, so the chunks are put together here."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 6, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [3, 4])
def test_rgb_of_sixteen_bits_is_divided(tmp_path: Path, channels: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 65536, (20, 30, channels)).astype(np.uint16)
    pixels[0, 0], pixels[0, 1] = 65535, 0
    write_png16(tmp_path / "x.png", pixels)
    more = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", **more)
    expected = np.rint(pixels[..., :3] / 257)
    for name in ("x.png", "x.tif"):
        image = read_image(tmp_path / name)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, expected)


def test_sixteen_bits_of_an_unknown_range_and_grey_are_refused(tmp_path: Path) -> None:
    Image.fromarray(rgb((20, 30)).astype(np.uint16) * 200).save(tmp_path / "grey.png")
    with pytest.raises(NucloraError, match=r"grey\.png: 16.*8 bits a channel.*convert it to 8-bit"):
        read_image(tmp_path / "grey.png")
    # As cameras of 12 and 14 bits write it.
    for name, bits in (("a", 12), ("b", 14)):
        pixels = np.random.default_rng(1).integers(0, 1 << bits, (20, 30, 3)).astype(np.uint16)
        write_png16(tmp_path / f"{name}.png", pixels)
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb")
        for suffix in ("png", "tif"):
            with pytest.raises(NucloraError, match=rf"{name}\.{suffix}: 16-bit RGB whose brightest.*; convert it"):
                read_image(tmp_path / f"{name}.{suffix}")


def test_several_pages_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((3, 20, 30), np.uint8), photometric="minisblack")
    with pytest.raises(NucloraError, match=r"3 pages where one is expected"):
        read_image(tmp_path / "x.tif")
    with pytest.raises(NucloraError, match=r"3 pages where one is expected"):
        read_labels(tmp_path / "x.tif")
    # One page, and the other planes behind it.
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((3, 20, 30), np.uint8), photometric="minisblack", truncate=True)
    with pytest.raises(NucloraError, match=r"3 pages where one is expected"):
        read_labels(tmp_path / "x.tif")
    # A single plane that was cut from a stack, with its description.
    plane = np.arange(600, dtype=np.uint8).reshape(20, 30)
    told = {"description": '{"shape": [3, 20, 30]}', "metadata": None}
    tifffile.imwrite(tmp_path / "x.tif", plane, photometric="minisblack", **told)
    np.testing.assert_array_equal(read_labels(tmp_path / "x.tif"), plane)


def test_large_images_are_refused_however_their_colours_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = rgb((20, 30, 3))
    for planes, values in (("contig", pixels), ("separate", np.moveaxis(pixels, 2, 0))):
        tifffile.imwrite(tmp_path / "x.tif", values, photometric="rgb", planarconfig=planes)
        monkeypatch.setattr("nuclora.data.images.MAX_PIXELS", 600)
        np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), pixels)
        monkeypatch.setattr("nuclora.data.images.MAX_PIXELS", 599)
        with pytest.raises(NucloraError, match=r"more than 599 pixels"):
            read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_tiff_is_one_whatever_its_suffix(tmp_path: Path, bigtiff: bool) -> None:
    tiff, path = tmp_path / "x.tif", tmp_path / "x.png"
    for pixels, told in (
        (np.zeros((3, 20, 30), np.uint8), "3 pages where one is expected; save one"),
        (rgb((20, 30)).astype(np.uint16), "uint16 image where 8 bits"),
    ):
        tifffile.imwrite(tiff, pixels, photometric="minisblack", bigtiff=bigtiff)
        tiff.rename(path)
        with pytest.raises(NucloraError, match=rf"x\.png: {told}"):
            read_image(path)
    np.testing.assert_array_equal(read_labels(path), rgb((20, 30)))
    tifffile.imwrite(tiff, rgb(), photometric="rgb", bigtiff=bigtiff)
    tiff.rename(path)
    np.testing.assert_array_equal(read_image(path), rgb())
    assert image_shape(path) == (20, 30)
    # Colours that go through Pillow.
    Image.new("CMYK", (16, 16), (55, 155, 205, 0)).save(tiff)
    tiff.rename(path)
    np.testing.assert_allclose(read_image(path)[4, 4], (200, 100, 50), atol=2)


@pytest.mark.parametrize(
    ("kind", "mend"),
    [
        ("png", r"it is a PNG file: rename it to x\.y\.png"),
        ("jpeg", r"it is a JPEG file: rename it to x\.y\.jpg"),
        ("webp", r"it is a WEBP file: rename it to x\.y\.webp"),
        ("gif", "it is a GIF file: save it as PNG or TIFF"),
    ],
)
@pytest.mark.parametrize("read", [read_image, read_labels, image_shape])
def test_a_wrong_suffix_is_no_damage(tmp_path: Path, kind: str, mend: str, read: Callable[[Path], object]) -> None:
    path = tmp_path / "x.y.tif"
    Image.fromarray(rgb()).save(path, format=kind)
    with pytest.raises(NucloraError, match=rf"x\.y\.tif: cannot be read \(.*\); {mend}$"):
        read(path)
    path = path.rename(tmp_path / "x.y.npy")
    with pytest.raises(NucloraError, match=rf"x\.y\.npy: cannot be read \(.*\); {mend}$"):
        read_labels(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "lzw.tif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.97])
def test_cut_short_images_are_named(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(rgb((200, 300, 3))).save(path, **({"compression": "tiff_lzw"} if "lzw" in suffix else {}))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(NucloraError, match=r"x\..*: (cannot be read|cut short).*damaged"):
        read_image(path)


def test_damaged_bytes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(rgb((200, 300, 3))).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(NucloraError, match=r"cannot be read"):
        read_image(path)
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(NucloraError, match=r"text.png: cannot be read"):
        read_image(tmp_path / "text.png")
    with pytest.raises(NucloraError, match=r"absent.png: no such file"):
        read_image(tmp_path / "absent.png")


@pytest.mark.parametrize("limit", [599, 299])
def test_images_larger_than_a_tile_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    # Pillow warns over its limit and raises over twice its limit: 600 pixels are over both kinds here.
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr("nuclora.data.images.MAX_PIXELS", limit)
    Image.fromarray(rgb()).save(tmp_path / "x.png")
    tifffile.imwrite(tmp_path / "x.tif", rgb(), photometric="rgb")
    np.save(tmp_path / "x.npy", np.zeros((20, 30), np.int32))
    for read, name in ((read_image, "x.png"), (read_image, "x.tif"), (read_labels, "x.npy")):
        with pytest.raises(NucloraError, match=f"{name}: more than {limit} pixels; cut it"):
            read(tmp_path / name)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.int64])
def test_label_maps_come_back_exactly(tmp_path: Path, dtype: type[np.integer]) -> None:
    ids = np.random.default_rng(1).integers(0, 200, (20, 30)).astype(dtype)
    np.save(tmp_path / "x.npy", ids)
    tifffile.imwrite(tmp_path / "x.tif", ids)
    tifffile.imwrite(tmp_path / "packed.tif", ids[None], compression="zlib")
    paths = [tmp_path / "x.npy", tmp_path / "x.tif", tmp_path / "packed.tif"]
    if np.dtype(dtype).itemsize <= 2:
        Image.fromarray(ids).save(tmp_path / "x.png")
        paths.append(tmp_path / "x.png")
    for path in paths:
        labels = read_labels(path)
        assert labels.dtype == np.int32, path
        np.testing.assert_array_equal(labels, ids, err_msg=str(path))


def test_sixteen_bit_ids_survive_png_and_big_endian_tiff(tmp_path: Path) -> None:
    ids = np.array([[0, 255, 256], [40000, 65535, 1]], np.uint16)
    Image.fromarray(ids).save(tmp_path / "x.png")
    tifffile.imwrite(tmp_path / "x.tif", ids, byteorder=">")
    np.testing.assert_array_equal(read_labels(tmp_path / "x.png"), ids)
    np.testing.assert_array_equal(read_labels(tmp_path / "x.tif"), ids)


def test_palette_label_maps_give_their_indices(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 2], [2, 2, 0]], np.uint8)
    image = Image.fromarray(ids)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "x.png"), ids)


def test_what_is_no_label_map_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "float.npy", np.zeros((4, 4), np.float32))
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((4, 4), np.float32))
    Image.fromarray(rgb()).save(tmp_path / "rgb.png")
    tifffile.imwrite(tmp_path / "rgb.tif", rgb(), photometric="rgb")
    np.save(tmp_path / "negative.npy", np.array([[0, -1]]))
    np.save(tmp_path / "huge.npy", np.array([[0, 2**31]]))
    np.save(tmp_path / "bool.npy", np.zeros((4, 4), bool))
    Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / "bit.png")
    np.save(tmp_path / "line.npy", np.zeros(4, int))
    np.save(tmp_path / "object.npy", np.array([[None]]), allow_pickle=True)
    (tmp_path / "short.npy").write_bytes((tmp_path / "float.npy").read_bytes()[:-3])
    reasons = {
        "float.npy": "labels are float32",
        "float.tif": "labels are float32",
        "rgb.png": "an RGB image",
        "rgb.tif": "an RGB image",
        "negative.npy": "negative id -1",
        "huge.npy": "id 2147483648 is over the limit",
        "bool.npy": "a binary mask",
        "bit.png": "a binary mask",
        "line.npy": r"an array of shape \(4,\)",
        "object.npy": "a pickle of Python objects",
        "short.npy": "cannot be read",
    }
    for name, reason in reasons.items():
        with pytest.raises(NucloraError, match=f"{name}: {reason}.*; "):
            read_labels(tmp_path / name)


def test_lossy_files_are_no_labels_whatever_they_are_called(tmp_path: Path) -> None:
    ids = np.repeat(np.arange(20, dtype=np.uint8), 30).reshape(20, 30)
    for name, kind in (("jpeg.png", "JPEG"), ("jpeg2000.png", "JPEG2000"), ("webp.png", "WEBP")):
        Image.fromarray(ids).save(tmp_path / name, kind)
    for kind in ("jpeg", "jpeg2000", "webp"):
        pixels = np.repeat(ids[..., None], 3, axis=2) if kind == "webp" else ids
        tifffile.imwrite(tmp_path / f"{kind}.tif", pixels, compression=kind)
        (tmp_path / f"{kind}_tif.png").write_bytes((tmp_path / f"{kind}.tif").read_bytes())
    for path in sorted(tmp_path.iterdir()):
        kind = path.stem.removesuffix("_tif").upper()
        with pytest.raises(NucloraError, match=f"{path.name}: compressed as {kind}, which .*; save it as an integer"):
            read_labels(path)
        with pytest.raises(NucloraError, match=f"{path.name}: compressed as {kind}, which .*; save one plane"):
            read_mask(path)


def test_lossless_files_are_labels(tmp_path: Path) -> None:
    ids = np.repeat(np.arange(20, dtype=np.uint8), 30).reshape(20, 30)
    for kind in ("zlib", "lzw", "packbits", "zstd", "lzma", "png"):
        tifffile.imwrite(tmp_path / f"{kind}.tif", ids, compression=kind)
    for kind in ("BMP", "GIF"):
        Image.fromarray(ids).save(tmp_path / f"{kind}.png", kind)
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(read_labels(path), ids, err_msg=path.name)


@pytest.mark.parametrize("mode", ["L", "1", "RGBA"])
def test_masks_ignore_what_is_not_zero(tmp_path: Path, mode: str) -> None:
    expected = np.zeros((8, 8), bool)
    expected[2:4, 1:7] = True
    Image.fromarray(expected.astype(np.uint8) * 255).convert(mode).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "x.png"), expected)


def test_tile_reads_a_sample(tmp_path: Path) -> None:
    Image.fromarray(rgb()).save(tmp_path / "i.png")
    np.save(tmp_path / "l.npy", np.ones((20, 30), int))
    sample = Tile("x", "all", tmp_path / "i.png", tmp_path / "l.npy").read()
    assert (sample.image.shape, sample.labels.dtype, sample.ignore.dtype) == ((20, 30, 3), np.int32, np.bool_)
    assert not sample.ignore.any()


def test_shapes_that_differ_are_named(tmp_path: Path) -> None:
    Image.fromarray(rgb()).save(tmp_path / "i.png")
    np.save(tmp_path / "turned.npy", np.ones((30, 20), int))
    np.save(tmp_path / "l.npy", np.ones((20, 30), int))
    with pytest.raises(NucloraError, match=r"turned.npy: 30x20 pixels .* where its image has 20x30; export"):
        Tile("x", "all", tmp_path / "i.png", tmp_path / "turned.npy").read()
    with pytest.raises(NucloraError, match=r"turned.npy: 30x20"):
        Tile("x", "all", tmp_path / "i.png", tmp_path / "l.npy", tmp_path / "turned.npy").read()


def test_tile_sets_are_indexed_by_number_and_name(plain_folder: Path) -> None:
    tiles = open_tiles(plain_folder)
    assert len(tiles) == 4
    assert tiles[0] is tiles["a"]
    assert [tile.name for tile in tiles] == tiles.names == ["a", "b", "liver/c", "liver/deep/d"]
    assert tiles.groups == ["all", "liver"]
    assert tiles.subset(["liver/c", "a"]).names == ["liver/c", "a"]
    assert pickle.loads(pickle.dumps(tiles)) == tiles
    with pytest.raises(NucloraError, match="no tile named 'z'"):
        tiles.subset(["a", "z"])


@pytest.mark.parametrize("name", ["palette.png", "palette.tif", "miniswhite.tif"])
def test_a_mask_is_what_is_not_black(tmp_path: Path, name: str) -> None:
    expected = np.zeros((16, 24), np.bool_)
    expected[2:6, 3:9] = True
    path = tmp_path / name
    if name == "palette.png":
        image = Image.fromarray((~expected).astype(np.uint8), "P")
        image.putpalette([255, 255, 255, 0, 0, 0])
        image.save(path)
    elif name == "palette.tif":
        colours = np.zeros((3, 256), np.uint16)
        colours[:, 0] = 65535
        tifffile.imwrite(path, (~expected).astype(np.uint8), photometric="palette", colormap=colours)
    else:
        tifffile.imwrite(path, np.where(expected, 0, 255).astype(np.uint8), photometric="miniswhite")
    np.testing.assert_array_equal(read_mask(path), expected)


@pytest.mark.parametrize(
    "values", [np.full((4, 4), "x"), np.full((4, 4), np.nan), np.zeros((4, 4), [("a", "u1")])], ids=str
)
def test_a_mask_of_no_numbers_is_refused(tmp_path: Path, values: NDArray[Any]) -> None:
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(NucloraError, match=r"x\.npy: .*(not of numbers|not finite); save one plane"):
        read_mask(tmp_path / "x.npy")


def test_a_rotation_that_would_turn_the_pixels_is_refused(tmp_path: Path) -> None:
    cmyk = np.dstack([rgb(), np.zeros((20, 30), np.uint8)])
    for orientation in (1, 6):
        tag = (274, 3, 1, orientation, True)
        tifffile.imwrite(tmp_path / f"cmyk{orientation}.tif", cmyk, photometric="separated", extratags=[tag])
        tifffile.imwrite(tmp_path / f"rgb{orientation}.tif", rgb(), photometric="rgb", extratags=[tag])
        # As the pixels are stored, and as other programs' label maps fit them.
        np.testing.assert_array_equal(read_image(tmp_path / f"rgb{orientation}.tif"), rgb())
    np.testing.assert_array_equal(read_image(tmp_path / "cmyk1.tif"), 255 - rgb())
    with pytest.raises(NucloraError, match=r"cmyk6\.tif: .*SEPARATED with a rotation noted; convert it to 8-bit RGB"):
        read_image(tmp_path / "cmyk6.tif")
