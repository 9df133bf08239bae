"""Random changes of a training tile: rotation, flips, stain jitter, noise."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from kornia.geometry.transform import rotate
from torch.nn.functional import normalize, pad

from nuclora.data.tiles import Sample
from nuclora.recipe import AugmentSettings

# Optical densities (red, green, blue) of haematoxylin and eosin: Ruifrok & Johnston, Anal. Quant. Cytol.
# Histol. 23 (2001) 291-299. In plain torch because kornia has no stain colour space.
_HAEMATOXYLIN = (0.650, 0.704, 0.286)
_EOSIN = (0.072, 0.990, 0.105)


class _Draws(NamedTuple):
    """The random numbers of one tile, all drawn at once: no change's setting alters another's numbers."""

    angle: float
    chances: list[float]
    stain: torch.Tensor
    noise_seed: int


def augment(sample: Sample, settings: AugmentSettings, seed: int) -> Sample:
    """Change one tile at random; equal seeds make equal bytes.

    Pixels that a rotation brings in from outside the tile show the mirrored image, so that no
    false background appears; their labels are 0 and they are marked to be ignored, because the
    mirrored part of a nucleus is no second nucleus.

    Args:
        sample: Image (H, W, 3) uint8, labels (H, W) int32 and ignore (H, W) bool; left as they are.
        settings: Kinds and strengths of the changes; all zero returns an equal sample.
        seed: Seed of this tile in this epoch. The global random state is neither read nor changed.

    Returns:
        A new sample of the same shapes and types. Labels are moved, never mixed; a nucleus that
        leaves the tile takes its id along, so ids may have gaps.
    """
    draws = _draw(settings, seed)
    image = torch.tensor(sample.image).permute(2, 0, 1)  # (3, H, W) uint8
    labels = torch.tensor(sample.labels)
    ignore = torch.tensor(sample.ignore)

    for dimension, chance in zip((-1, -2), draws.chances[:2], strict=True):
        if chance < settings.flip:
            image, labels, ignore = (plane.flip(dimension) for plane in (image, labels, ignore))

    values = image.float()
    if settings.rotation > 0:
        values = _turn(values, draws.angle, "bilinear", "reflection")
        # Doubles hold every int32 id exactly; the kept pixels are the ones, so that outside reads as ignored.
        planes = torch.stack((labels.double(), (~ignore).double()))
        moved, kept = _turn(planes, draws.angle, "nearest", "zeros")
        labels, ignore = moved.to(labels.dtype), kept == 0
    if settings.stain > 0:
        values = _jitter_stain(values, settings.stain * draws.stain)
    if draws.chances[2] < settings.noise:
        generator = torch.Generator().manual_seed(draws.noise_seed)
        values = values + 255 * settings.noise_std * torch.randn(values.shape, generator=generator)

    pixels = values.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    return Sample(*(plane.contiguous().numpy() for plane in (pixels, labels, ignore)))


def _draw(settings: AugmentSettings, seed: int) -> _Draws:
    generator = torch.Generator().manual_seed(seed)
    angle, *chances = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    return _Draws(
        angle=math.degrees((2 * angle - 1) * settings.rotation),
        chances=chances,
        stain=2 * torch.rand(2, 2, generator=generator) - 1,
        noise_seed=int(torch.randint(2**62, (), generator=generator)),
    )


def _turn(planes: torch.Tensor, degrees: float, mode: str, padding: str) -> torch.Tensor:
    """Rotate (C, H, W) about its centre."""
    angle = torch.tensor([degrees], dtype=planes.dtype)
    turned: torch.Tensor = rotate(planes, angle, mode=mode, padding_mode=padding, align_corners=True)
    return turned


def _jitter_stain(values: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Multiply and shift the haematoxylin and eosin concentrations of an image.

    Tellez et al., IEEE Trans. Med. Imaging 37 (2018) 2126-2136: c -> c * (1 + a) + b. The part of
    the colour that neither stain explains is kept.

    Args:
        values: Image (3, H, W) in 0..255.
        shifts: (2, 2): a and b (natural optical density) in its columns, a row a stain.
    """
    stains = torch.tensor((_HAEMATOXYLIN, _EOSIN))
    # The third row takes what neither stain explains.
    stains = normalize(torch.cat((stains, torch.linalg.cross(*stains)[None])))
    factors, offsets = pad(shifts.T, (0, 1))
    # Concentrations are density @ inverse(stains): one 3x3 matrix and one vector do the whole change.
    matrix = torch.linalg.inv(stains) @ torch.diag(1 + factors) @ stains
    density = -torch.log(values.clamp(min=1) / 255).flatten(1)
    changed = torch.addmm((offsets @ stains)[:, None], matrix.T, density)
    return (255 * torch.exp(-changed)).reshape(values.shape)
