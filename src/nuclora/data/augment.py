"""Random changes of a training tile: of its place and shape, its stains, light and sharpness."""

from __future__ import annotations

import io
import math
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from kornia.filters import gaussian_blur2d
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import grid_sample, interpolate, normalize, pad

from nuclora.data.tiles import Sample
from nuclora.recipe import AugmentSettings

# Optical densities (red, green, blue) of haematoxylin and eosin: Ruifrok & Johnston, Anal. Quant. Cytol.
# Histol. 23 (2001) 291-299. In plain torch because kornia has no stain colour space.
_HAEMATOXYLIN = (0.650, 0.704, 0.286)
_EOSIN = (0.072, 0.990, 0.105)
_HUE = 0.25
"""Largest change of haematoxylin's red, green and blue density where a tile is restained."""
_DYE = 1.5
"""Largest strength, of eosin's, of the dye in its place."""
_WHITE = 0.98
"""Share of the pixels that are no brighter than what exposure makes white: background, where there is any."""
_BRIGHTNESS = 0.3 * 255
"""Largest shift of the brightness at full strength, in 0..255."""
_BLUR_SIGMAS = (0.3, 1.2)
"""Standard deviations of the blur in pixels."""
_JPEG_QUALITIES = (50, 95)
_KNOTS = 32
"""Pixels between the points that bending moves each by itself: about a nucleus."""

_Planes: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.bool_]]


class _Draws(NamedTuple):
    """The random numbers of one tile, all drawn at once: no change's setting alters another's numbers.

    All but the seeds are uniform: `angle`, `stain`, `zoom` and `light` in -1..1, the others in 0..1.
    """

    angle: float
    flips: tuple[float, float]
    noise: float
    stain: torch.Tensor
    noise_seed: int
    zoom: float
    place: tuple[float, float]
    light: tuple[float, float]
    blur: tuple[float, float]
    jpeg: tuple[float, float]
    elastic_seed: int
    restain: float
    dyes: torch.Tensor
    dye_strength: float
    exposure: tuple[float, float]


class _View(NamedTuple):
    """The lattice of points at which the tile is read, a point a pixel of the result.

    Attributes:
        shape: Rows and columns of the result.
        centre: Where the result's centre lies in the tile: row and column, 0 at the first pixel's centre.
        angle: Counter-clockwise turn of the tile, in radians.
        step: Distance of neighbouring points in tile pixels.
        elastic: Standard deviation of the shifts that bend the lattice, in tile pixels.
        elastic_seed: Draws these shifts.
    """

    shape: tuple[int, int]
    centre: tuple[float, float]
    angle: float
    step: float
    elastic: float = 0.0
    elastic_seed: int = 0

    def points(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and columns of the points in the tile, (H, W) each. In doubles: exact where nothing turns or zooms."""
        down, right = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in self.shape)
        cosine, sine = self.step * math.cos(self.angle), self.step * math.sin(self.angle)
        row, column = self.centre
        rows, columns = row + cosine * down[:, None] + sine * right, column + cosine * right - sine * down[:, None]
        if self.elastic:
            shifts = self._shifts()
            rows, columns = rows + shifts[0], columns + shifts[1]
        return rows, columns

    def _shifts(self) -> torch.Tensor:
        """Smooth random shifts, (2, H, W): a coarse lattice of normal numbers, enlarged."""
        generator = torch.Generator().manual_seed(self.elastic_seed)
        knots = [max(2, round(side / _KNOTS) + 1) for side in self.shape]
        shifts = self.elastic * torch.randn(1, 2, *knots, generator=generator, dtype=torch.float64)
        return interpolate(shifts, self.shape, mode="bicubic", align_corners=True)[0]


# The middle of a turned or zoomed crop, in shares of its side, that stays inside the tile.
_INNER = 0.75


def augment(sample: Sample, settings: AugmentSettings, seed: int) -> Sample:
    """Change one tile at random; equal seeds make equal bytes.

    Flips, rotation, zoom, crop and bending together read the tile once. Rotation and zoom are about the tile's
    centre; a crop lies anywhere in the tile with equal chance, or in the middle where it does not fit. Where
    tiles are turned or zoomed it may stick out a little, or the tile's edges would hardly ever be seen. Pixels
    from outside the tile show the mirrored image, so that no false background appears; their labels are 0 and
    they are marked to be ignored, because the mirrored part of a nucleus is no second nucleus. Stain, exposure,
    light, blur, JPEG and noise follow in this order.

    Args:
        sample: Image (H, W, 3) uint8, labels (H, W) int32 and ignore (H, W) bool; left as they are.
        settings: Kinds and strengths of the changes; all off returns an equal sample.
        seed: Seed of this tile in this epoch. The global random state is neither read nor changed.

    Returns:
        A new sample of the same types; (crop, crop) pixels large if `settings.crop` is set, else of the same
        shapes. Labels are moved, never mixed; a nucleus that leaves the tile takes its id along, so ids
        may have gaps.
    """
    draws = _draw(seed)
    planes: _Planes = (sample.image, sample.labels, sample.ignore)
    for axis, chance in zip((1, 0), draws.flips, strict=True):
        if chance < settings.flip:
            image, labels, ignore = planes
            planes = np.flip(image, axis), np.flip(labels, axis), np.flip(ignore, axis)

    if settings.rotation > 0 or settings.zoom > 1 or settings.elastic > 0 or settings.crop is not None:
        values, labels, ignore = _read(planes, _view(sample.labels.shape, settings, draws))
    else:
        image, labels, ignore = planes
        values, labels, ignore = _values(image), labels.copy(), ignore.copy()
    pixels = _pixels(_recolour(values, settings, draws))
    return Sample(pixels, labels, ignore)


def _draw(seed: int) -> _Draws:
    generator = torch.Generator().manual_seed(seed)
    angle, flip_x, flip_y, noise = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    stain = 2 * torch.rand(2, 2, generator=generator) - 1
    noise_seed = int(torch.randint(2**62, (), generator=generator))
    # New draws go to the end of this list: runs of older versions keep their numbers.
    zoom, row, column, contrast, brightness, *chances = torch.rand(9, generator=generator, dtype=torch.float64).tolist()
    return _Draws(
        angle=2 * angle - 1,
        flips=(flip_x, flip_y),
        noise=noise,
        stain=stain,
        noise_seed=noise_seed,
        zoom=2 * zoom - 1,
        place=(row, column),
        light=(2 * contrast - 1, 2 * brightness - 1),
        blur=(chances[0], chances[1]),
        jpeg=(chances[2], chances[3]),
        elastic_seed=int(torch.randint(2**62, (), generator=generator)),
        restain=float(torch.rand((), generator=generator)),
        dyes=torch.rand(2, 3, generator=generator),
        dye_strength=float(torch.rand((), generator=generator)),
        exposure=(float(torch.rand((), generator=generator)), float(torch.rand((), generator=generator))),
    )


def _view(tile: tuple[int, ...], settings: AugmentSettings, draws: _Draws) -> _View:
    """What to read of a tile of so many rows and columns."""
    angle = draws.angle * settings.rotation
    step = settings.zoom**-draws.zoom
    bending = settings.elastic, draws.elastic_seed
    height, width = tile
    if settings.crop is None:
        return _View((height, width), ((height - 1) / 2, (width - 1) / 2), angle, step, *bending)
    whole = settings.rotation == 0 and settings.zoom == 1
    # What is to lie in the tile.
    extent = settings.crop if whole else _INNER * settings.crop * step
    row, column = (
        _corner(side - extent, chance, whole) + (extent - 1) / 2 for side, chance in zip(tile, draws.place, strict=True)
    )
    return _View((settings.crop, settings.crop), (row, column), angle, step, *bending)


def _corner(room: float, chance: float, whole: bool) -> float:
    """Where a stretch begins that has so much room to move in; in whole pixels where bytes are to stay as they are."""
    if whole:
        return math.floor(chance * (room + 1)) if room >= 0 else room // 2
    return chance * room if room >= 0 else room / 2


def _span(points: torch.Tensor, side: int) -> tuple[int, int]:
    """First and end of the pixels in a row or column of a tile that points lie between; one at least."""
    # Bent, all points may lie outside a tile of a few pixels.
    first = min(max(math.floor(float(points.min())), 0), side - 1)
    return first, max(min(math.ceil(float(points.max())) + 1, side), first + 1)


def _read(planes: _Planes, view: _View) -> tuple[torch.Tensor, NDArray[np.int32], NDArray[np.bool_]]:
    """Read image (3, H, W) as floats, labels (H, W) and ignore (H, W) at the points of a view."""
    rows, columns = view.points()
    # Only the part that the view shows: tiles may be many times larger than it. What is mirrored lies in this
    # part as well, because the view's centre lies in the tile.
    (top, bottom), (left, right) = (
        _span(points, side) for points, side in zip((rows, columns), planes[1].shape, strict=True)
    )
    window = slice(top, bottom), slice(left, right)
    image, labels, ignore = planes[0][window], planes[1][window], planes[2][window]
    height, width = labels.shape
    rows, columns = rows.sub_(top), columns.sub_(left)

    # grid_sample counts from -1, the first pixel's centre, to 1, the last one's; columns come first.
    grid = torch.empty((1, *view.shape, 2))
    grid[0, ..., 0] = columns * (2 / max(width - 1, 1)) - 1
    grid[0, ..., 1] = rows * (2 / max(height - 1, 1)) - 1
    values = grid_sample(_values(image)[None], grid, mode="bilinear", padding_mode="reflection", align_corners=True)[0]

    # Indices instead of grid_sample: every int32 id stays exact.
    row, column = rows.round_().long(), columns.round_().long()
    inner_row, inner_column = row.clamp(0, height - 1), column.clamp(0, width - 1)
    outside = ((row != inner_row) | (column != inner_column)).numpy()
    places = (inner_row * width + inner_column).numpy()
    moved, ignored = labels.ravel()[places], ignore.ravel()[places]
    moved[outside], ignored[outside] = 0, True
    return values, moved, ignored


def _recolour(values: torch.Tensor, settings: AugmentSettings, draws: _Draws) -> torch.Tensor:
    """Change the colours of an image (3, H, W) in 0..255, which is used up."""
    restained = draws.restain < settings.restain
    if settings.stain > 0 or restained:
        shown = _dyes(draws) if restained else _stains()
        values = _stain(values, settings.stain * draws.stain, shown)
    if draws.exposure[0] < settings.exposure:
        values = values.mul_(_exposure(values) ** draws.exposure[1])
    if settings.light > 0:
        contrast, brightness = (settings.light * share for share in draws.light)
        mean = float(values.mean())
        values = values.sub_(mean).mul_(1 + contrast).add_(mean + _BRIGHTNESS * brightness)
    if draws.blur[0] < settings.blur:
        values = _blur(values, _between(_BLUR_SIGMAS, draws.blur[1]))
    if draws.jpeg[0] < settings.jpeg:
        values = _compress(values, round(_between(_JPEG_QUALITIES, draws.jpeg[1])))
    if draws.noise < settings.noise:
        generator = torch.Generator().manual_seed(draws.noise_seed)
        values = torch.randn(values.shape, generator=generator).mul_(255 * settings.noise_std).add_(values)
    return values


def _blur(values: torch.Tensor, sigma: float) -> torch.Tensor:
    # Three standard deviations to each side. Replicated edges, unlike mirrored ones, suit images of any size.
    side = 2 * math.ceil(3 * sigma) + 1
    blurred: torch.Tensor = gaussian_blur2d(values[None], (side, side), (sigma, sigma), border_type="replicate")[0]
    return blurred


def _compress(values: torch.Tensor, quality: int) -> torch.Tensor:
    """Write as JPEG and read again."""
    file = io.BytesIO()
    Image.fromarray(_pixels(values)).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return _values(np.asarray(image))


def _stains() -> torch.Tensor:
    """Densities of haematoxylin and eosin, (2, 3), each of length 1."""
    return normalize(torch.tensor((_HAEMATOXYLIN, _EOSIN)))


def _dyes(draws: _Draws) -> torch.Tensor:
    """What shows the stains in their place, (2, 3): a haematoxylin of another batch; any colour, weak or strong."""
    haematoxylin = torch.tensor(_HAEMATOXYLIN).add(_HUE * (2 * draws.dyes[0] - 1)).clamp_(min=0)
    colours = normalize(torch.stack((haematoxylin, draws.dyes[1])))
    return colours * torch.tensor(((1.0,), (_DYE * draws.dye_strength,)))


def _stain(values: torch.Tensor, shifts: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """Multiply and shift the haematoxylin and eosin concentrations of an image, and show them in the given colours.

    Tellez et al., IEEE Trans. Med. Imaging 37 (2018) 2126-2136: c -> c * (1 + a) + b. The part of
    the colour that neither stain explains is kept.

    Args:
        values: Image (3, H, W) in 0..255.
        shifts: (2, 2): a and b (natural optical density) in its columns, a row a stain.
        shown: (2, 3): densities that a unit of haematoxylin and of eosin shows.
    """
    stains = _stains()
    # The third row takes what neither stain explains.
    rest = normalize(torch.linalg.cross(*stains)[None])
    stains, shown = torch.cat((stains, rest)), torch.cat((shown, rest))
    factors, offsets = pad(shifts.T, (0, 1))
    # Concentrations are density @ inverse(stains): one 3x3 matrix and one vector do the whole change.
    matrix = torch.linalg.inv(stains) @ torch.diag(1 + factors) @ shown
    density = values.clamp(min=1).div_(255).log_().neg_().flatten(1)
    changed = torch.addmm((offsets @ shown)[:, None], matrix.T, density)
    return changed.neg_().exp_().mul_(255).reshape(values.shape)


def _exposure(values: torch.Tensor) -> float:
    """The factor that makes the brightest of an image (3, H, W) in 0..255 white, its hue kept: 1 or more."""
    # By the greatest channel: none is cut off, so the hue stays.
    bright = values.amax(0).flatten().kthvalue(max(1, round(_WHITE * values[0].numel()))).values
    return 255 / min(max(float(bright), 1.0), 255.0)


def _between(limits: tuple[float, float], share: float) -> float:
    return limits[0] + share * (limits[1] - limits[0])


def _values(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """(H, W, 3) bytes as (3, H, W) floats."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))


def _pixels(values: torch.Tensor) -> NDArray[np.uint8]:
    """(3, H, W) floats, which are used up, as (H, W, 3) bytes."""
    pixels: NDArray[np.uint8] = values.round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels
