"""Reading image, label-map and mask files into arrays, with every refusal named."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from nuclora.errors import NucloraError
from nuclora.io.kinds import other_kind

TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp"}) | TIFF_SUFFIXES
LABEL_SUFFIXES = frozenset({".png", ".npy"}) | TIFF_SUFFIXES

# What it says of a damaged file is said in our own line.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

# Pillow's own warning level: over it a file is a slide or a decompression bomb, not a tile.
MAX_PIXELS = 89_478_485

_T = TypeVar("_T")
# First bytes of TIFF and BigTIFF, of both byte orders.
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Of these suffixes nothing but what they say is read; Pillow looks at the content alone.
_BY_SUFFIX = TIFF_SUFFIXES | {".npy"}
_LABEL_MODES = frozenset({"L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N"})
# What tifffile decodes straight to grey or RGB, and what goes through Pillow.
_PLAIN_PHOTOMETRICS = frozenset({tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB})
_OTHER_PHOTOMETRICS = frozenset(
    {
        tifffile.PHOTOMETRIC.MINISWHITE,
        tifffile.PHOTOMETRIC.PALETTE,
        tifffile.PHOTOMETRIC.SEPARATED,
        tifffile.PHOTOMETRIC.YCBCR,
        tifffile.PHOTOMETRIC.CIELAB,
    }
)
_ALPHA = frozenset({tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA})
# Kinds of file, and of compression in TIFF, that change values, or may: an id that is off by one is another nucleus.
_LOSSY_FORMATS = frozenset({"JPEG", "MPO", "JPEG2000", "WEBP", "AVIF"})
_LOSSY_COMPRESSIONS = frozenset(
    kind for kind in tifffile.COMPRESSION if "JP" in kind.name or kind.name.startswith("WEBP")
)
# White of 16 bits over white of 8.
_STEPS_16 = 257
# A brightfield image whose brightest value is lower was scaled to 14 bits or fewer.
_LEAST_WHITE_16 = 1 << 14
_LABEL_MEND = "save it as an integer label map: one id a nucleus, 0 background (PNG, TIFF or NPY)"
_MASK_MEND = "save one plane of pixels, not zero where they are ignored (PNG, TIFF or NPY)"
_TILE_MEND = "cut it into tiles of some thousand pixels at most"


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image as RGB.

    Grey, palette, CMYK, YCbCr and CIELAB images are converted; an alpha channel is dropped, not blended. RGB of 16 bits
    is divided by 257, and refused where its brightest value is under 16,384: its range is not that of 16 bits then.

    Args:
        path: PNG, TIFF, JPEG or BMP file with 8 bits a channel; PNG or TIFF file of RGB with 16.

    Returns:
        The pixels, (H, W, 3).

    Raises:
        NucloraError: No such file, damaged, of other values or channels, several pages, or larger than a tile.
    """
    return guard(lambda path: _read_tiff_image(path) if _is_tiff(path) else _read_pillow_image(path), path)


def read_labels(path: Path) -> NDArray[np.int32]:
    """Read a label map.

    Args:
        path: PNG (8 or 16 bits, grey or palette indices), TIFF or NPY file of whole numbers.

    Returns:
        The ids, (H, W), 0 background; gaps are left as they are.

    Raises:
        NucloraError: No such file, damaged, or not a label map: lossy, float, RGB, binary, negative ids.
    """
    return as_labels(guard(lambda path: _read_raw(path, _LABEL_MEND), path), path)


def as_labels(ids: NDArray[Any], path: Path) -> NDArray[np.int32]:
    """Take the values of a file for a label map.

    Args:
        ids: The values.
        path: The file, for errors.

    Returns:
        The ids, (H, W), 0 background; gaps are left as they are.

    Raises:
        NucloraError: Not a label map: float, RGB, binary, negative ids.
    """
    if ids.dtype == np.bool_:
        raise NucloraError("a binary mask, not a label map", path=path, mend=_LABEL_MEND)
    if ids.dtype.kind not in "iu":
        raise NucloraError(f"labels are {ids.dtype}, not whole numbers", path=path, mend=_LABEL_MEND)
    if ids.ndim != 2:
        kind = "an RGB image" if ids.ndim == 3 and ids.shape[2] in (3, 4) else f"an array of shape {ids.shape}"
        raise NucloraError(f"{kind}, not a label map of shape (height, width)", path=path, mend=_LABEL_MEND)
    if ids.size and ids.dtype.kind == "i" and ids.min() < 0:
        raise NucloraError(f"negative id {ids.min()}", path=path, mend=_LABEL_MEND)
    if ids.size and ids.dtype.itemsize >= 4 and ids.max() > np.iinfo(np.int32).max:
        raise NucloraError(f"id {ids.max()} is over the limit of 2147483647", path=path, mend="renumber from 1")
    return ids.astype(np.int32)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read an ignore mask: any channel but alpha that is not zero ignores the pixel, so all that is not black.

    Args:
        path: PNG, TIFF or NPY file.

    Returns:
        The mask, (H, W).

    Raises:
        NucloraError: No such file, damaged, lossy, not of one plane of pixels, or not of finite numbers.
    """
    values = guard(lambda path: _read_raw(path, _MASK_MEND, as_colours=True), path)
    if values.dtype.kind not in "buif":
        raise NucloraError(f"a mask of {values.dtype}, not of numbers", path=path, mend=_MASK_MEND)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise NucloraError("values that are not finite", path=path, mend=_MASK_MEND)
    if values.ndim == 3 and values.shape[2] in (3, 4):
        values = np.any(values[..., :3] != 0, axis=2)
    if values.ndim != 2:
        raise NucloraError(
            f"an array of shape {values.shape}, not a mask of shape (height, width)",
            path=path,
            mend=_MASK_MEND,
        )
    return values.astype(np.bool_)


def image_shape(path: Path) -> tuple[int, int]:
    """Height and width of an image file, without decoding it.

    Raises:
        NucloraError: No such file, or damaged.
    """
    return guard(lambda path: _tiff_shape(path) if _is_tiff(path) else _pillow_shape(path), path)


def open_array(path: Path) -> NDArray[Any]:
    """Map an NPY file into memory. Nothing is ever unpickled.

    Raises:
        NucloraError: No such file, damaged, or a pickle of Python objects.
    """
    return guard(_map_array, path)


def guard(read: Callable[[Path], _T], path: Path) -> _T:
    """Read a file, with whatever a decoder raises turned into one line.

    Raises:
        NucloraError: No such file, damaged, or what `read` refuses.
    """
    try:
        if path.is_fifo():
            raise NucloraError("a pipe, not a file", path=path, mend="put the file there, or remove it")
        return read(path)
    except (NucloraError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise NucloraError("no such file", path=path, mend="check the path") from error
    except PermissionError as error:
        raise NucloraError("may not be read", path=path, mend="check its permissions") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise NucloraError(f"more than {MAX_PIXELS} pixels", path=path, mend=_TILE_MEND) from error
    # Decoders raise whatever the damaged bytes lead them to: struct.error, SyntaxError, IndexError, ...
    except Exception as error:
        what = " ".join(str(error).replace(repr(str(path)), "").replace(str(path), "").split()) or type(error).__name__
        mend = other_kind(path) if path.suffix.lower() in _BY_SUFFIX else None
        raise NucloraError(
            f"cannot be read ({what[:160]})",
            path=path,
            mend=mend or "the file is damaged or cut short: get it again",
        ) from error


def read_head(path: Path, size: int) -> bytes:
    """Read the first bytes of a file.

    Raises:
        NucloraError: It cannot be read.
    """

    def read(path: Path) -> bytes:
        with path.open("rb") as file:
            return file.read(size)

    return guard(read, path)


def _is_tiff(path: Path) -> bool:
    """Whether a file is to be read as TIFF: Pillow would take its first page, and 8 of 16 bits, in silence."""
    if path.suffix.lower() in TIFF_SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(4) in _TIFF_HEADS


def _open_pillow(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path)


def _read_pillow_image(path: Path) -> NDArray[Any]:
    with _open_pillow(path) as image:
        # Pages of TIFF are counted before; the pictures after the first of a phone's MPO are of other kinds.
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format not in ("TIFF", "MPO"):
            raise _several(frames, path)
        if image.mode.startswith(("I", "F")):
            raise _not_eight_bit(path, "16-bit grey or float")
        if image.mode == "1":
            raise _not_eight_bit(path, "1-bit")
        if image.format == "PNG" and _png_depth(path) == 16:
            # Pillow cuts 16-bit RGB down to 8 bits in silence.
            return _from_sixteen_bit(_decode_png(path), path)
        if "transparency" in image.info:
            # Pillow blends or warns about a palette's transparency unless it becomes alpha first.
            return np.asarray(image.convert("RGBA"))[..., :3].copy()
        return np.array(image.convert("RGB"))


def _png_depth(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(25)[-1]


def _decode_png(path: Path) -> NDArray[Any]:
    import imagecodecs

    return np.asarray(imagecodecs.png_decode(path.read_bytes()))


def _from_sixteen_bit(pixels: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise _not_eight_bit(path, "16-bit grey")
    rgb = pixels[..., :3]
    if rgb.max() < _LEAST_WHITE_16:
        raise NucloraError(
            f"16-bit RGB whose brightest value is {rgb.max()} of 65535: its range is not known",
            path=path,
            mend="convert it to 8-bit RGB with the same scaling for every image",
        )
    return ((rgb.astype(np.uint32) + _STEPS_16 // 2) // _STEPS_16).astype(np.uint8)


def _several(pages: int, path: Path) -> NucloraError:
    return NucloraError(f"{pages} pages where one is expected", path=path, mend="save one plane a file")


def _not_eight_bit(path: Path, what: str) -> NucloraError:
    return NucloraError(
        f"{what} image where 8 bits a channel are expected",
        path=path,
        mend="convert it to 8-bit RGB with the same scaling for every tile",
    )


def _pillow_shape(path: Path) -> tuple[int, int]:
    with _open_pillow(path) as image:
        return image.height, image.width


def _tiff_shape(path: Path) -> tuple[int, int]:
    with tifffile.TiffFile(path) as tiff:
        page = _only_page(tiff, path)
        return int(page.imagelength), int(page.imagewidth)


def _map_array(path: Path) -> NDArray[Any]:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        if "Python objects" not in str(error):
            raise
        raise NucloraError(
            "a pickle of Python objects, which may run any code when it is opened",
            path=path,
            mend="save a plain array of numbers with numpy.save",
        ) from error


def _read_tiff_image(path: Path) -> NDArray[Any]:
    with tifffile.TiffFile(path) as tiff:
        page = _only_page(tiff, path)
        is_rgb = page.photometric == tifffile.PHOTOMETRIC.RGB
        if page.dtype != np.uint8 and not (page.dtype == np.uint16 and is_rgb):
            raise _not_eight_bit(path, "1-bit" if page.dtype == np.bool_ else f"{page.dtype}")
        if page.bitspersample < 8 and page.photometric in _PLAIN_PHOTOMETRICS:
            raise _not_eight_bit(path, f"{page.bitspersample}-bit")
        # Of JPEG the decoder has made RGB.
        is_jpeg = page.photometric == tifffile.PHOTOMETRIC.YCBCR and page.compression == tifffile.COMPRESSION.JPEG
        if page.photometric in _PLAIN_PHOTOMETRICS or is_jpeg:
            pixels = _decode(page, path)
            if pixels.ndim == 3 and pixels.shape[0] in (3, 4) and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
                pixels = np.moveaxis(pixels, 0, -1)
            if pixels.ndim == 3 and pixels.shape[2] == 2 and _ALPHA.intersection(page.extrasamples):
                pixels = pixels[..., 0]
            if pixels.ndim == 2:
                pixels = np.repeat(pixels[..., None], 3, axis=2)
            if pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
                raise NucloraError(
                    f"an array of shape {pixels.shape}, not a grey or RGB image",
                    path=path,
                    mend="save its colours as 8-bit RGB",
                )
            if pixels.dtype == np.uint16:
                return _from_sixteen_bit(pixels, path)
            return np.ascontiguousarray(pixels[..., :3])
        if page.photometric not in _OTHER_PHOTOMETRICS:
            kind = getattr(page.photometric, "name", page.photometric)
            raise NucloraError(f"colours of the kind {kind}", path=path, mend="convert it to 8-bit RGB")
        if getattr(page.tags.get("Orientation"), "value", 1) != 1:
            # Pillow would turn or mirror the pixels, and no other image's are.
            told = f"colours of the kind {page.photometric.name} with a rotation noted"
            raise NucloraError(told, path=path, mend="convert it to 8-bit RGB")
    return _read_pillow_image(path)


def _read_raw(path: Path, mend: str, *, as_colours: bool = False) -> NDArray[Any]:
    """Stored values of a label map or mask, without any conversion; `mend` is for errors.

    As colours, the indices of a palette become what they stand for, and 0 is white where the file says so.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        values = _map_array(path)
        _refuse_large(values.shape, path)
        return np.array(values)
    if _is_tiff(path):
        with tifffile.TiffFile(path) as tiff:
            page = _only_page(tiff, path)
            if page.compression in _LOSSY_COMPRESSIONS:
                raise _lossy(page.compression.name, path, mend)
            pixels = _decode(page, path)
            if as_colours and page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
                pixels = pixels != (1 << page.bitspersample) - 1
            elif as_colours and page.colormap is not None:
                pixels = page.colormap[:, pixels].any(axis=0)
            return np.squeeze(pixels) if pixels.ndim > 2 else pixels
    with _open_pillow(path) as image:
        if image.format in _LOSSY_FORMATS:
            raise _lossy(image.format, path, mend)
        if (image.mode in _LABEL_MODES or image.mode == "1") and not (as_colours and image.mode == "P"):
            return np.array(image)
        return np.array(image.convert("RGBA"))


def _lossy(kind: str, path: Path, mend: str) -> NucloraError:
    return NucloraError(f"compressed as {kind}, which changes ids and masks", path=path, mend=mend)


def _only_page(tiff: tifffile.TiffFile, path: Path) -> tifffile.TiffPage:
    # Further pages that are thumbnails or pyramid levels are marked as reduced.
    full = [page for page in tiff.pages if not getattr(page, "is_reduced", False)]
    if not full:
        raise ValueError("no page in the file")
    if len(full) > 1:
        raise _several(len(full), path)
    page = full[0]
    # Planes of a stack may lie behind each other under one page; a description alone may be left of one that was cut.
    planes = tiff.series[0].size // page.size if tiff.is_imagej or tiff.is_shaped else 1
    end = page.dataoffsets[0] + planes * page.nbytes
    if planes > 1 and page.compression == tifffile.COMPRESSION.NONE and end <= path.stat().st_size:
        raise _several(planes, path)
    _refuse_large((page.imagelength, page.imagewidth), path)
    return page


def _refuse_large(shape: tuple[int, ...], path: Path) -> None:
    if np.prod(shape[:2], dtype=np.int64) > MAX_PIXELS:
        raise NucloraError(f"more than {MAX_PIXELS} pixels", path=path, mend=_TILE_MEND)


def _decode(page: tifffile.TiffPage, path: Path) -> NDArray[Any]:
    # tifffile fills segments that the file ends before with zeros in silence.
    size = path.stat().st_size
    ends = [start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if ends and max(ends) > size:
        raise NucloraError(
            f"cut short: {size} of {max(ends)} bytes", path=path, mend="the file is damaged: get it again"
        )
    return np.asarray(page.asarray())
