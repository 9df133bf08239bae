"""Synthetic H&E tiles with exact labels, for demonstrations and tests.

A tile is built as light would see it: tissue is laid out (lumina, fibres, cells), every structure
gets an amount of haematoxylin, eosin and pigment, and the amounts become colours by Beer-Lambert's
law; optics and sensor come last. The labels are the geometry that the nuclei are drawn from.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from nuclora.data.tiles import Sample, counted
from nuclora.data.tissue import LOOKS, Field, Look, Nuclei, Pose, Scene, blob, lay_out, noise, step
from nuclora.errors import NucloraError, require_choice
from nuclora.files import atomic_folder, disk_errors, hold_file, place_of_new

# Optical densities (red, green, blue) of one unit, read off real tiles after taking out the lamp.
_HAEMATOXYLIN = np.array((0.70, 0.74, 0.36))
_EOSIN = np.array((0.14, 0.80, 0.42))
_BLOOD = np.array((0.12, 0.80, 0.66))
_PIGMENT = np.array((0.70, 1.00, 1.25))
_LARGEST_OVERLAP = 0.14
_SMALLEST_NUCLEUS = 40
ORGANS = tuple(LOOKS)


class _Canvas(NamedTuple):
    """What nuclei are painted on: ids, haematoxylin, cover in 0..1, and the noise of their chromatin."""

    labels: NDArray[np.int32]
    haematoxylin: Field
    cover: Field
    clumps: Field


def synthesize_tile(size: int, seed: int, organ: int | str) -> Sample:
    """Make one tile.

    Args:
        size: Side in pixels, 64 to 4096; nuclei are some 20 to 40 pixels wide at any size.
        seed: Equal seeds make equal tiles.
        organ: One of :data:`ORGANS`, or its number from 0.

    Returns:
        Image (size, size, 3), labels 1..n without gaps or overlaps, and an ignore mask over
        out-of-focus nuclei that have no label.

    Raises:
        NucloraError: No such organ, or a side that is too small or too large.
    """
    if not 64 <= size <= 4096:
        raise NucloraError(f"no synthetic tile can have a side of {size} pixels", mend="ask for 64 to 4096")
    name = organ if isinstance(organ, str) else dict(enumerate(ORGANS)).get(organ, str(organ))
    require_choice("synthetic organ", name, ORGANS)
    look = LOOKS[name]
    rng = np.random.default_rng((seed, ORGANS.index(name)))
    scene = lay_out(look, size, rng)
    canvas = _Canvas(
        np.zeros((size, size), np.int32),
        np.zeros((size, size)),
        np.zeros((size, size)),
        0.6 * noise(size, 1.9, rng) + 0.4 * noise(size, 0.8, rng),
    )
    _place_nuclei(look, scene, canvas, rng)
    # Three tiles in ten have parts that no annotator could have labelled.
    ignore = np.zeros((size, size), bool)
    ghosts = _ghosts(canvas, scene, ignore, rng) if rng.random() < 0.3 else 0.0
    eosin, haematoxylin = _cytoplasm(look, scene, canvas, rng)
    shade = 1 + 0.08 * noise(size, 50, rng)
    stain = rng.normal(1, 0.1, 2)
    vectors = [v * np.array(look.hue) * rng.normal(1, 0.04, 3) for v in (_HAEMATOXYLIN, _EOSIN)]
    density = stain[0] * (canvas.haematoxylin + haematoxylin + ghosts)[..., None] * vectors[0]
    density += stain[1] * (eosin * shade)[..., None] * vectors[1]
    density += _blood(look, scene, canvas, rng)[..., None] * _BLOOD
    density += _pigment(look, canvas, rng)[..., None] * _PIGMENT
    return Sample(image=_photograph(density, rng), labels=canvas.labels, ignore=ignore)


def _place_nuclei(look: Look, scene: Scene, canvas: _Canvas, rng: np.random.Generator) -> None:
    size = len(canvas.labels)
    tissue = float((scene.lumen < 0.5).mean())
    wanted = look.packing * rng.uniform(0.75, 1.2) * tissue * size * size
    weights = {"body": np.cumsum(scene.body), "edge": np.cumsum(scene.edge)}
    shares = np.array([kind.share for kind in look.nuclei])
    covered = 0
    placed: list[Pose] = []
    # So many tries fill the densest tissue; a nucleus that fits nowhere must not hold the tile up.
    for _ in range(40 + int(wanted / 20)):
        if covered >= wanted:
            break
        kind = look.nuclei[rng.choice(len(shares), p=shares)]
        radius = 0.5 * kind.diameter * rng.lognormal(0, 0.16)
        if placed and rng.random() < look.touching:
            near = placed[rng.integers(len(placed))]
            turn, away = rng.uniform(0, 2 * np.pi), 0.95 * (near.radius + radius)
            y, x = near.y + away * np.sin(turn), near.x + away * np.cos(turn)
        else:
            total = weights[kind.place]
            y, x = divmod(int(np.searchsorted(total, rng.uniform(0, total[-1]))), size)
        if not (0 <= y < size and 0 <= x < size):
            continue
        angle = scene.angle[int(y), int(x)] + rng.normal(0, 0.15) if kind.aligned else rng.uniform(0, np.pi)
        pose = Pose(y, x, radius, angle)
        area = _paint_nucleus(kind, pose, len(placed) + 1, scene, canvas, rng)
        if area:
            covered += area
            placed.append(pose)


def _paint_nucleus(
    kind: Nuclei,
    pose: Pose,
    label: int,
    scene: Scene,
    canvas: _Canvas,
    rng: np.random.Generator,
) -> int:
    """Draw a nucleus with `label` where it fits; its area in pixels, or 0 where it does not."""
    stretch = np.sqrt(max(1.0, kind.elongation * rng.lognormal(0, 0.15)))
    window, depth = blob(pose, stretch, len(canvas.labels), rng)
    inside = depth > 0
    labels = canvas.labels[window]
    own = inside & (labels == 0) & (scene.lumen[window] < 0.5)
    area = int(own.sum())
    least = max(_SMALLEST_NUCLEUS, (1 - _LARGEST_OVERLAP) * inside.sum())
    if area < least or ndimage.label(own)[1] > 1:
        return 0
    strength = kind.haematoxylin * rng.lognormal(0, 0.16) * (rng.uniform(0.4, 0.7) if rng.random() < 0.2 else 1)
    clumps = np.tanh(2 * canvas.clumps[window])
    membrane = (1.4 + 0.6 * clumps) * np.exp(-(((depth - 1.2) / 1.1) ** 2) / 2)
    chromatin = 1 + kind.speckle * clumps + kind.rim * (membrane - 0.5 * step(depth - 4, 2))
    amount = strength * chromatin
    rows, columns = np.mgrid[window].astype(float)
    for _ in range(rng.poisson(kind.nucleoli)):
        spot_y, spot_x = rng.normal((pose.y, pose.x), 0.3 * pose.radius)
        spot = ((rows - spot_y) ** 2 + (columns - spot_x) ** 2) / (2 * rng.uniform(1.3, 2.4) ** 2)
        amount = amount + 0.8 * kind.haematoxylin * np.exp(-spot)
    # Nuclei lie over each other in a section: a little of this one shows through its neighbour.
    through = np.where((labels > 0) & inside, 0.35, 1.0) * (scene.lumen[window] < 0.5)
    cover = step(depth, rng.uniform(0.8, 2.5)) * through
    canvas.haematoxylin[window] += amount * cover
    canvas.cover[window] = np.maximum(canvas.cover[window], cover)
    labels[own] = label
    return area


def _ghosts(canvas: _Canvas, scene: Scene, ignore: NDArray[np.bool_], rng: np.random.Generator) -> Field:
    """Haematoxylin of nuclei far out of focus: no label, but marked in `ignore`, as annotators mark them."""
    size = len(ignore)
    amount = np.zeros((size, size))
    for _ in range(rng.integers(1, 4)):
        y, x = rng.uniform(0, size, 2)
        window, depth = blob(Pose(y, x, rng.uniform(11, 17), rng.uniform(0, np.pi)), 1.1, size, rng)
        free = (canvas.labels[window] == 0) & (scene.lumen[window] < 0.5)
        if free[depth > -4].mean() > 0.95:
            amount[window] += 0.5 * step(depth, 6) * free
            ignore[window] |= (depth > -4) & free
    return amount


def _cytoplasm(look: Look, scene: Scene, canvas: _Canvas, rng: np.random.Generator) -> tuple[Field, Field]:
    """Eosin and haematoxylin of everything but nuclei."""
    labels = canvas.labels
    size = len(labels)
    seeds = labels.copy()
    # Cells whose nucleus lies above or below the section.
    extra = int(size * size / 2500)
    seeds[rng.integers(0, size, extra), rng.integers(0, size, extra)] = labels.max() + 1 + np.arange(extra)
    seeds[labels > 0] = labels[labels > 0]
    away, nearest = ndimage.distance_transform_edt(seeds == 0, return_indices=True)
    cell = seeds[tuple(nearest)]
    wobble = [np.clip(grid + 3 * noise(size, 7, rng), 0, size - 1).astype(int) for grid in np.mgrid[:size, :size]]
    cell = cell[tuple(wobble)]
    change = (cell != np.roll(cell, 1, 0)) | (cell != np.roll(cell, 1, 1))
    border = np.exp(-((ndimage.distance_transform_edt(~change) / 1.5) ** 2) / 2)
    levels = rng.normal(1, 0.1, int(seeds.max()) + 1)[cell]
    body = step(look.reach - away + 1.5 * noise(size, 4, rng), 3) * (1 - scene.stroma)
    grains = 0.10 * noise(size, 1.1, rng) + 0.10 * noise(size, 3, rng) + 0.12 * noise(size, 11, rng)
    if look.layout == "fibres":
        grains += 0.15 * scene.fibres
    fleshy = levels * (1 + grains + look.border * border)
    fibrous = look.between * (1 + 0.35 * scene.fibres)
    tissue = 1 - scene.lumen
    eosin = tissue * (body * fleshy + (1 - body) * fibrous) + 0.04 * scene.lumen * np.exp(0.8 * noise(size, 9, rng))
    eosin = eosin * (1 - 0.2 * canvas.cover)
    basophilia = tissue * body * (1 + 0.3 * noise(size, 3, rng)) * (1 - canvas.cover)
    return look.eosin * np.clip(eosin, 0.02, None), look.basophilia * np.clip(basophilia, 0, None)


def _blood(look: Look, scene: Scene, canvas: _Canvas, rng: np.random.Generator) -> Field:
    """Red blood cells, most of them in groups and in lumina; they carry no label."""
    size = len(canvas.labels)
    amount = np.zeros((size, size))
    for _ in range(rng.poisson(look.blood * (size / 256) ** 2 * 2)):
        centre = rng.uniform(0, size, 2)
        for _ in range(rng.integers(2, 8)):
            y, x = centre + rng.normal(0, 14, 2)
            if not (0 <= y < size and 0 <= x < size):
                continue
            pose = Pose(y, x, rng.uniform(6, 8), rng.uniform(0, np.pi))
            window, depth = blob(pose, rng.uniform(1, 1.2), size, rng)
            if (canvas.cover[window] * (depth > 0)).sum() < 4:
                disc = step(depth, 1.0) * (1 - 0.35 * np.exp(-(((depth - 7) / 3) ** 2)))
                amount[window] = np.maximum(amount[window], 0.75 * disc)
    return amount


def _pigment(look: Look, canvas: _Canvas, rng: np.random.Generator) -> Field:
    """Clusters of brown granules in the cytoplasm; they carry no label."""
    size = len(canvas.labels)
    amount = np.zeros((size, size))
    for _ in range(rng.poisson(look.pigment * (size / 256) ** 2 * 4)):
        centre = rng.uniform(0, size, 2)
        for _ in range(rng.integers(5, 25)):
            y, x = (centre + rng.normal(0, 7, 2)).astype(int)
            if 0 <= y < size and 0 <= x < size and canvas.labels[y, x] == 0:
                amount[y, x] += rng.uniform(2, 9)
    return np.asarray(ndimage.gaussian_filter(amount, 1.1))


def _photograph(density: Field, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Optical density (H, W, 3) to what a camera saw: lamp, focus and noise."""
    size = len(density)
    lamp = rng.uniform(190, 240) * np.array((1.0, 0.99, 0.98)) * rng.normal(1, 0.012, 3)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    falloff = 1 + 0.04 * (rng.normal() * y + rng.normal() * x) - 0.03 * (x**2 + y**2)
    light = lamp * falloff[..., None] * np.exp(-density)
    focus = rng.uniform(0.8, 1.9)
    light = ndimage.gaussian_filter(light, (focus, focus, 0))
    grain = rng.normal(0, 1, light.shape) + 1.2 * ndimage.gaussian_filter(rng.normal(0, 1, light.shape), (0.7, 0.7, 0))
    light += rng.uniform(1.0, 2.2) * grain * np.sqrt(light / 160)
    return np.asarray(np.clip(np.rint(light), 0, 255), np.uint8)


def write_dataset(dest: Path, *, tiles: int, size: int, organs: int, seed: int) -> None:
    """Write synthetic tiles in NuInsSeg's layout; the folder appears when it is whole.

    Args:
        dest: Folder to make; it may exist if it is empty and not the current one.
        tiles: Number of tiles in all, spread evenly over the organs.
        size: Side of a tile in pixels.
        organs: How many of :data:`ORGANS`.
        seed: Equal seeds make equal files.

    Raises:
        NucloraError: `dest` is not empty, no folder or the current one, the numbers make no data set, or the disk is
            full.
    """
    dest = place_of_new(dest)
    if not 1 <= organs <= len(ORGANS):
        raise NucloraError(f"{organs} synthetic organs cannot be made", mend=f"ask for 1 to {len(ORGANS)}")
    if tiles < organs:
        raise NucloraError(
            f"{counted(tiles, 'tile')} for {counted(organs, 'organ')}", mend="ask for a tile an organ at least"
        )
    with disk_errors(dest):
        dest.parent.mkdir(parents=True, exist_ok=True)
    with hold_file(dest, "data set", patience=0), atomic_folder(dest) as root:
        for index in range(tiles):
            organ = ORGANS[index % organs]
            name = f"{organ.replace(' ', '_')}_{index // organs + 1:02d}"
            # Neighbouring seeds must not share tiles, so they are mixed with the index, not added to it.
            tile_seed = int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
            sample = synthesize_tile(size, tile_seed, organ)
            _write_tile(root / organ, name, sample)
        # The new folder takes the place of what came there meanwhile.
        place_of_new(dest)


def _write_tile(folder: Path, name: str, sample: Sample) -> None:
    for part in ("tissue images", "label masks modify"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(sample.image).save(folder / "tissue images" / f"{name}.png", compress_level=1)
    tifffile.imwrite(folder / "label masks modify" / f"{name}.tif", sample.labels.astype(np.uint16), compression="zlib")
    if sample.ignore.any():
        vague = folder / "vague areas" / "mask binary"
        vague.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.ignore.astype(np.uint8) * 255).save(vague / f"{name}.png")
