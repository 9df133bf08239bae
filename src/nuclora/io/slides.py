"""The files that slides come in: those that OpenSlide knows, and TIFF read tile by tile."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import tifffile

from nuclora.errors import NucloraError
from nuclora.io.kinds import other_kind
from nuclora.io.microns import of_openslide, of_tiff
from nuclora.io.pyramid import GLASS, Level, Pixels, Slide, overlap

SLIDE_SUFFIXES: Final = frozenset({".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".dcm"})
"""Of files that are always slides; a TIFF may be one, see :func:`is_slide`."""

TIFF_SUFFIXES: Final = frozenset({".tif", ".tiff"})

# OpenSlide places a rectangle of a coarser level by pixels of level 0, and so between the level's own pixels.
# Rectangles of one grid give the same pixels whatever is read around them.
_GRID = 512
# Pixels of a strip or tile that are decoded at once.
_LARGEST_SEGMENT = 1 << 26
_JPEG = frozenset({6, 7, 33007, 34892})


def is_slide(path: Path, pixels: int) -> bool | None:
    """Whether a file is a slide: by its suffix, or a TIFF of several levels or of more than so many pixels.

    Returns:
        None where it is a TIFF that cannot be opened or is cut short: read as an image it is refused by name.
    """
    suffix = path.suffix.lower()
    if suffix not in TIFF_SUFFIXES:
        return suffix in SLIDE_SUFFIXES
    try:
        with tifffile.TiffFile(path) as tiff:
            first = tiff.series[0].levels
            page = first[0].keyframe
            if len(first) > 1 or int(page.imagewidth) * int(page.imagelength) > pixels:
                return True
            # Of a file that is cut short the other levels may be what lacks.
            parts = zip(page.dataoffsets, page.databytecounts, strict=False)
            end = max((offset + count for offset, count in parts), default=None)
            return None if end is None or end > path.stat().st_size else False
    except MemoryError:
        raise
    except Exception:
        # A damaged TIFF makes tifffile raise nearly anything.
        return None


def open_slide(path: Path, microns_per_pixel: float | None = None) -> Slide:
    """Open a slide.

    Args:
        path: A file that OpenSlide knows (SVS, NDPI, MRXS, SCN, VMS, VMU, BIF, TIFF of these makers; of a slide in
            DICOM any of its files, which lie in one folder), or any TIFF of 8-bit RGB, best with tiles and levels
            (OME-TIFF is one).
        microns_per_pixel: Of level 0; by default the file is asked, see :mod:`nuclora.io.microns`.

    Raises:
        NucloraError: No such file, damaged, not 8-bit RGB, or OpenSlide is needed and not installed.
    """
    if not path.is_file():
        raise NucloraError("no such file", path=path, mend="check the path")
    if path.suffix.lower() in TIFF_SUFFIXES:
        library = _openslide()
        # What it calls generic it knows less well than tifffile: no levels in sub-IFDs, no 16-bit told from 8.
        if library is None or library.OpenSlide.detect_format(str(path)) in (None, "generic-tiff"):
            return TiffSlide(path, microns_per_pixel)
    else:
        library = _openslide()
        if library is None:
            raise NucloraError(
                "this kind of slide needs OpenSlide", path=path, mend="install it: pip install 'nuclora[slides]'"
            )
    return OpenSlideSlide(library, path, microns_per_pixel)


def _openslide() -> ModuleType | None:
    try:
        import openslide
    except ImportError:
        return None
    module: ModuleType = openslide
    return module


class OpenSlideSlide(Slide):
    """A slide read by OpenSlide; what is transparent is glass."""

    def __init__(self, library: ModuleType, path: Path, microns_per_pixel: float | None) -> None:
        self._library = library
        try:
            self._slide = library.OpenSlide(str(path))
        except library.OpenSlideError as error:
            what = " ".join(str(error).split())
            # The first file of an MRXS is a JPEG.
            mend = other_kind(path) if path.suffix.lower() != ".mrxs" else None
            mend = mend or "the file is damaged or no slide: get it again"
            raise NucloraError(f"OpenSlide cannot read it ({what[:160]})", path=path, mend=mend) from error
        properties = dict(self._slide.properties)
        levels = [Level(width, height) for width, height in self._slide.level_dimensions]
        identity = properties.get(library.PROPERTY_NAME_QUICKHASH1, "")
        super().__init__(path, levels, microns_per_pixel or of_openslide(properties), identity)
        self.scanned = _scanned(properties)

    def close(self) -> None:
        self._slide.close()

    def read_level(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        if level == 0:
            return self._read(0, left, top, width, height)
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        size = self.levels[level]
        for row in range(top // _GRID * _GRID, top + height, _GRID):
            for column in range(left // _GRID * _GRID, left + width, _GRID):
                of_grid = self._read(level, column, row, min(_GRID, size.width - column), min(_GRID, size.height - row))
                _paste(pixels, (top, left), of_grid, (row, column))
        return pixels

    def _read(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        downsample = self._slide.level_downsamples[level]
        place = round(left * downsample), round(top * downsample)
        try:
            seen = np.asarray(self._slide.read_region(place, level, (width, height)))
        except self._library.OpenSlideError:
            # After an error it reads nothing more, not even what is sound, until it is opened anew.
            self._slide.close()
            self._slide = self._library.OpenSlide(str(self.path))
            raise
        return _on_glass(seen)


def _scanned(properties: Mapping[str, str]) -> tuple[int, int]:
    """Column and row of level 0 where what was scanned begins; 0, 0 where OpenSlide does not say all of its rectangle.

    As QuPath's reader decides it.
    """
    bounds = [properties.get(f"openslide.bounds-{name}", "") for name in ("x", "y", "width", "height")]
    return (int(bounds[0]), int(bounds[1])) if all(value.isdecimal() for value in bounds) else (0, 0)


def _on_glass(seen: Pixels) -> Pixels:
    """RGBA over the colour of glass: uint8 (height, width, 4) to (height, width, 3)."""
    opaque = seen[..., 3:]
    if opaque.min() == 255:
        return np.ascontiguousarray(seen[..., :3])
    covered = opaque / np.float32(255)
    return np.rint(seen[..., :3] * covered + GLASS * (1 - covered)).astype(np.uint8)


class TiffSlide(Slide):
    """A slide read by tifffile, of which only the tiles (or strips) that are asked for are decoded."""

    def __init__(self, path: Path, microns_per_pixel: float | None) -> None:
        with contextlib.ExitStack() as stack:
            try:
                self._file = stack.enter_context(tifffile.TiffFile(path))
                self._pages = [level.pages[0] for level in self._file.series[0].levels]
                keyframes = [page.keyframe for page in self._pages]
                known = microns_per_pixel or of_tiff(self._file)
                levels = [Level(int(page.imagewidth), int(page.imagelength)) for page in keyframes]
                if min(min(level) for level in levels) < 1:
                    raise ValueError("a level without pixels")
                _require_rgb(self._file.series[0], path)
            except (NucloraError, MemoryError):
                raise
            except Exception as error:
                # A damaged TIFF makes tifffile raise nearly anything.
                what = " ".join(str(error).split()) or type(error).__name__
                raise NucloraError(
                    f"cannot be read as TIFF ({what[:160]})", path=path, mend="the file is damaged: get it again"
                ) from error
            super().__init__(path, levels, known)
            stack.pop_all()

    def close(self) -> None:
        self._file.close()

    def read_level(self, level: int, left: int, top: int, width: int, height: int) -> Pixels:
        page = self._pages[level]
        key = page.keyframe
        tall = int(key.tilelength if key.is_tiled else min(key.rowsperstrip, key.imagelength))
        wide = int(key.tilewidth if key.is_tiled else key.imagewidth)
        in_a_row = -(-int(key.imagewidth) // wide)
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        for row in range(top // tall, -(-(top + height) // tall)):
            for column in range(left // wide, -(-(left + width) // wide)):
                segment = self._segment(page, row * in_a_row + column)
                if segment is None:
                    segment = np.full((tall, wide, 3), GLASS, dtype=np.uint8)
                _paste(pixels, (top, left), segment, (row * tall, column * wide))
        return pixels

    def _segment(self, page: Any, index: int) -> Pixels | None:
        """One tile or strip; None where the file leaves it out."""
        start, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            return None
        there = max(0, self._file.filehandle.size - start)
        if there < count:
            # Not read to find out: a damaged count may be more than the memory holds.
            raise ValueError(f"cut short: {there} of {count} bytes of tile {index}")
        with self._file.filehandle.lock:
            self._file.filehandle.seek(start)
            data = self._file.filehandle.read(count)
        options: dict[str, Any] = {"_fullsize": page.keyframe.is_tiled}
        if page.keyframe.compression in _JPEG:
            options |= {"jpegtables": page.jpegtables, "jpegheader": page.keyframe.jpegheader}
        decoded = page.keyframe.decode(data, index, **options)[0]
        if decoded is None:
            return None
        found: Pixels = np.asarray(decoded)[0]
        if tifffile.EXTRASAMPLE.UNASSALPHA in page.keyframe.extrasamples:
            return _on_glass(found)
        if tifffile.EXTRASAMPLE.ASSOCALPHA in page.keyframe.extrasamples:
            # Colours that are multiplied by it already.
            found = np.minimum(found + np.uint16(GLASS) - found[:, :, 3:], GLASS).astype(np.uint8)
        rgb: Pixels = found[:, :, :3]
        return rgb


def _paste(pixels: Pixels, origin: tuple[int, int], part: Pixels, place: tuple[int, int]) -> None:
    """Copy a part where it meets the pixels; both are placed by row and column of their first pixel."""
    here, there = overlap(origin, pixels.shape, place, part.shape)
    pixels[here] = part[there]


def _require_rgb(series: Any, path: Path) -> None:
    key = series.levels[0].keyframe
    if key.dtype != np.uint8:
        raise NucloraError(
            f"{key.dtype} slide where 8 bits a channel are expected", path=path, mend="convert it to 8-bit RGB"
        )
    # Only the decoder of JPEG makes RGB of YCbCr.
    is_jpeg = key.photometric == tifffile.PHOTOMETRIC.YCBCR and key.compression in _JPEG
    is_rgb = key.photometric == tifffile.PHOTOMETRIC.RGB or is_jpeg
    if key.samplesperpixel not in (3, 4) or not is_rgb or len(series.levels[0].pages) > 1:
        raise NucloraError(
            f"not an RGB slide: {key.samplesperpixel} channel(s) and {len(series.levels[0].pages)} page(s) of"
            f" {getattr(key.photometric, 'name', key.photometric)}",
            path=path,
            mend="convert it to 8-bit RGB",
        )
    if key.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        raise NucloraError("its channels are stored apart", path=path, mend="save it with interleaved RGB pixels")
    segment = (
        key.tilelength * key.tilewidth if key.is_tiled else min(key.rowsperstrip, key.imagelength) * key.imagewidth
    )
    if segment > _LARGEST_SEGMENT:
        raise NucloraError(
            f"stored in pieces of {segment} pixels, which must be decoded whole", path=path, mend="save it with tiles"
        )
