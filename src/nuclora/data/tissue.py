"""The tissues of synthetic tiles: what each looks like, and where its spaces, fibres and cells lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

Field = NDArray[np.floating[Any]]
_SMALLEST_SPACE = 80


@dataclass(frozen=True)
class Nuclei:
    """One kind of nucleus.

    Attributes:
        share: Share of the tissue's nuclei.
        place: Where it lies: in the body of the tissue, or at its edges (lumina, walls).
        diameter: Typical diameter in pixels, of the circle of equal area.
        elongation: Typical length over width.
        haematoxylin: Mean optical density.
        rim: How much darker than the inside the membrane is, as a share of `haematoxylin`.
        speckle: Contrast of the chromatin, likewise.
        nucleoli: Mean number of nucleoli.
        aligned: Whether it follows the fibres.
    """

    share: float
    place: Literal["body", "edge"]
    diameter: float
    elongation: float = 1.2
    haematoxylin: float = 0.9
    rim: float = 0.3
    speckle: float = 0.25
    nucleoli: float = 0.5
    aligned: bool = False


@dataclass(frozen=True)
class Look:
    """How a tissue looks.

    Attributes:
        layout: Sheets cut by channels, fibres with clefts, or tubules around lumina.
        nuclei: The kinds of nuclei in it.
        packing: Share of the tissue's area that nuclei try to cover.
        touching: Share of nuclei that are put beside another one.
        lumen: Typical share of white space.
        eosin: Optical density of the cytoplasm's eosin.
        basophilia: Optical density of the cytoplasm's haematoxylin.
        reach: How far cytoplasm goes from its nucleus, in pixels; stroma lies beyond.
        between: Eosin of stroma, as a share of `eosin`.
        border: Eosin that cell borders have more (or less) than cytoplasm, likewise.
        hue: Factors of the stains' red, green and blue densities.
        blood: Density of red blood cells.
        pigment: Density of brown pigment.
    """

    layout: Literal["channels", "fibres", "tubules"]
    nuclei: tuple[Nuclei, ...]
    packing: float
    touching: float
    lumen: float
    eosin: float
    basophilia: float
    reach: float
    between: float
    border: float
    hue: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blood: float = 0.0
    pigment: float = 0.0


LOOKS = {
    "synthetic liver": Look(
        layout="channels",
        nuclei=(
            Nuclei(0.75, "body", 35, 1.08, 0.50, 0.34, 0.30, 1.4),
            Nuclei(0.25, "edge", 21, 2.0, 0.95, 0.10, 0.15, 0.0, True),
        ),
        packing=0.18,
        touching=0.2,
        lumen=0.05,
        eosin=0.95,
        basophilia=0.10,
        reach=60,
        between=0.6,
        border=-0.25,
        blood=0.6,
    ),
    "synthetic spleen": Look(
        layout="channels",
        nuclei=(
            Nuclei(0.75, "body", 23, 1.12, 1.0, 0.22, 0.35, 0.2),
            Nuclei(0.25, "body", 31, 1.3, 0.55, 0.35, 0.25, 1.2),
        ),
        packing=0.52,
        touching=0.6,
        lumen=0.05,
        eosin=0.6,
        basophilia=0.26,
        reach=8,
        between=0.5,
        border=-0.15,
        hue=(1.05, 0.98, 1.0),
        blood=1.0,
        pigment=0.3,
    ),
    "synthetic muscle": Look(
        layout="fibres",
        nuclei=(
            Nuclei(0.7, "body", 25, 4.5, 0.75, 0.18, 0.2, 0.4, True),
            Nuclei(0.3, "edge", 20, 1.4, 1.0, 0.15, 0.2, 0.0),
        ),
        packing=0.13,
        touching=0.25,
        lumen=0.05,
        eosin=1.1,
        basophilia=0.08,
        reach=80,
        between=0.8,
        border=0.0,
        blood=0.2,
    ),
    "synthetic kidney": Look(
        layout="tubules",
        nuclei=(
            Nuclei(0.75, "body", 27, 1.12, 0.70, 0.30, 0.30, 0.8),
            Nuclei(0.25, "edge", 21, 2.3, 0.95, 0.12, 0.18, 0.0, True),
        ),
        packing=0.28,
        touching=0.35,
        lumen=0.07,
        eosin=0.85,
        basophilia=0.12,
        reach=45,
        between=0.75,
        border=0.10,
        hue=(0.98, 1.05, 1.0),
        blood=0.5,
    ),
    "synthetic melanoma": Look(
        layout="channels",
        nuclei=(
            Nuclei(0.7, "body", 37, 1.35, 0.62, 0.32, 0.42, 1.8),
            Nuclei(0.3, "body", 23, 1.25, 1.05, 0.15, 0.25, 0.0),
        ),
        packing=0.38,
        touching=0.45,
        lumen=0.03,
        eosin=0.7,
        basophilia=0.22,
        reach=18,
        between=0.55,
        border=-0.2,
        hue=(1.03, 0.97, 1.03),
        pigment=1.0,
    ),
}


class Scene(NamedTuple):
    """The tissue before its cells, each part (size, size).

    Attributes:
        lumen: White space, 0 to 1.
        body: Weight of each pixel as a nucleus's centre, for kinds of this place; `edge` likewise.
        angle: Direction of the fibres in radians; `fibres` is their texture (mean 0, deviation 1).
        stroma: Where fibres replace cytoplasm whatever nuclei are near, 0 to 1.
    """

    lumen: Field
    body: Field
    edge: Field
    angle: Field
    fibres: Field
    stroma: Field


class Pose(NamedTuple):
    """Where a shape lies: centre and radius in pixels, direction in radians."""

    y: float
    x: float
    radius: float
    angle: float


def noise(size: int, sigma: float, rng: np.random.Generator) -> Field:
    """Smooth noise (size, size) of mean 0, standard deviation 1 and correlation length `sigma`."""
    # Wide noise is made on a coarse grid, for speed.
    cell = max(1.0, sigma / 3)
    side = int(np.ceil(size / cell)) + 4
    coarse = ndimage.gaussian_filter(rng.standard_normal((side, side)), sigma / cell, mode="wrap")
    if cell > 1:
        coarse = ndimage.zoom(coarse, (size + 2 * cell) / side, order=3)
    field = coarse[:size, :size]
    return np.asarray((field - field.mean()) / field.std())


def streaks(u: Field, v: Field, long: float, short: float, rng: np.random.Generator) -> Field:
    """Noise that is `long` pixels along u and `short` pixels along v."""
    grid = ndimage.gaussian_filter(rng.standard_normal((192, 192)), 0.7, mode="wrap")
    field = ndimage.map_coordinates(grid, (v / short, u / long), order=1, mode="grid-wrap")
    return np.asarray((field - field.mean()) / field.std())


def step(field: Field, width: float) -> Field:
    """From 0 below to 1 above zero, `width` wide."""
    return np.asarray(0.5 + 0.5 * np.tanh(field / width))


def lay_out(look: Look, size: int, rng: np.random.Generator) -> Scene:
    """Lay out lumina, fibres and the places of nuclei in a tile."""
    y, x = np.mgrid[:size, :size].astype(float)
    direction = rng.uniform(0, np.pi)
    u = x * np.cos(direction) + y * np.sin(direction)
    v = y * np.cos(direction) - x * np.sin(direction) + rng.uniform(4, 12) * noise(size, 45, rng)
    slope_y, slope_x = np.gradient(v)
    angle = np.arctan2(-slope_x, slope_y)
    fibres = 0.7 * streaks(u, v, 45, 5, rng) + 0.5 * streaks(u, v, 16, 1.8, rng)
    stroma: Field = np.zeros((size, size))
    if look.layout == "channels":
        # The zero line of smooth noise is a net of winding channels; patches widen it here and there.
        gap = -np.abs(noise(size, 22, rng)) + 0.25 * noise(size, 40, rng) + 0.12 * noise(size, 3, rng)
    elif look.layout == "fibres":
        gap = streaks(u, v, 130, 22, rng) + 0.35 * streaks(u, v, 40, 6, rng)
    else:
        wall, gap = _tubules(size, rng)
        stroma = step(3.5 + 3 * noise(size, 30, rng) - wall, 2.5)
    lumen, outside = _lumina(gap, look.lumen * rng.uniform(0.5, 1.6), rng)
    if look.layout == "tubules":
        body = np.exp(-(((wall - 22) / 7) ** 2)) * (outside > 8)
        edge = stroma * (outside > 4)
    else:
        body = step(outside - 8, 4) * np.exp(0.5 * noise(size, 30, rng))
        edge = np.exp(-(((outside - 7) / 4) ** 2))
    return Scene(lumen, body, edge, angle, fibres, stroma)


def _lumina(gap: Field, share: float, rng: np.random.Generator) -> tuple[Field, Field]:
    """White space where `gap` is largest, and the distance to it in pixels."""
    size = len(gap)
    gap = gap + 0.12 * gap.std() * (noise(size, 2.5, rng) + noise(size, 6, rng))
    level = np.quantile(gap, 1 - share)
    parts, _ = ndimage.label(gap > level)
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    white = (areas > _SMALLEST_SPACE)[parts]
    outside = ndimage.distance_transform_edt(~white) if white.any() else np.full((size, size), float(size))
    # Tissue frays towards white space, here more and there less.
    fray = 1.2 + 2.2 * np.exp(0.8 * noise(size, 15, rng))
    wisps = 0.25 + 0.25 * noise(size, 5, rng) - ndimage.distance_transform_edt(white) / 14
    return (1 - np.clip(wisps, 0, 0.6)) * np.exp(-((outside / fray) ** 2)), outside


def _tubules(size: int, rng: np.random.Generator) -> tuple[Field, Field]:
    """Distance from the wall of the tubule that a pixel lies in, and how central it is there."""
    spacing = 105.0
    grid = np.mgrid[-1 : size / spacing + 1, -2 : size / spacing + 1].reshape(2, -1).T
    grid[:, 1] += 0.5 * (grid[:, 0] % 2)
    centres = (grid + rng.normal(0, 0.17, grid.shape) + rng.uniform(0, 1, 2)) * spacing
    pixels = np.stack([axis + 5 * noise(size, 20, rng) for axis in np.mgrid[:size, :size]], axis=-1)
    away, tubule = KDTree(centres).query(pixels, k=2)
    widths = rng.normal(0, 6, len(centres))
    return (away[..., 1] - away[..., 0]) / 2, widths[tubule[..., 0]] + 2 * noise(size, 6, rng) - away[..., 0]


def blob(pose: Pose, stretch: float, size: int, rng: np.random.Generator) -> tuple[tuple[slice, ...], Field]:
    """Draw a bent, uneven ellipse.

    Args:
        pose: Centre, radius of the circle of equal area, and direction of the long axis.
        stretch: Square root of length over width.
        size: Side of the tile.
        rng: Source of the unevenness.

    Returns:
        Its window of the tile, and there the depth in pixels below its outline, negative outside.
    """
    y, x, radius, angle = pose
    long, short = radius * stretch, radius / stretch
    reach = int(1.35 * long) + 4
    window = tuple(slice(max(0, int(c) - reach), min(size, int(c) + reach + 1)) for c in (y, x))
    rows, columns = np.mgrid[window] - np.reshape((y, x), (2, 1, 1))
    along = columns * np.cos(angle) + rows * np.sin(angle)
    across = rows * np.cos(angle) - columns * np.sin(angle)
    across = across + rng.normal(0, 0.12) * (stretch - 0.8) * along**2 / long
    polar = np.arctan2(across / short, along / long)
    distance = np.hypot(across / short, along / long)
    outline = 1.0 + sum(
        rng.normal(0, 0.11 / order) * np.cos(order * polar + rng.uniform(0, 2 * np.pi)) for order in range(2, 7)
    )
    slope = np.hypot(across / short**2, along / long**2) + 1e-6
    return window, (outline - distance) * (distance + 1e-3) / slope
