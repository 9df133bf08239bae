"""The prompt-free decoder: from the encoder's features and the pixels to maps of all nuclei at once.

A pyramid over the encoder's levels, from coarse to fine (Lin et al. 2017, "Feature Pyramid Networks for Object
Detection"), and a convolution on the tile's own pixels, because a nucleus is one to four cells of SAM's embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nuclora.data.targets import MAPS, STRIDE

OFFSET_UNIT = 16.0
"""Tile pixels per unit of the offsets that the network itself works with."""
_GROUPS = 8


class _GroupNorm(nn.GroupNorm):
    """The same, for features in channels-last order on a CPU, where the plain backward takes three times as long."""

    def forward(self, features: Tensor) -> Tensor:
        if not (features.requires_grad and features.device.type == "cpu"):
            return super().forward(features)
        return super().forward(features.contiguous()).contiguous(memory_format=torch.channels_last)


class _ConvNormAct(nn.Sequential):
    # Group norms: batches are small, and there is no running state that a checkpoint could miss.
    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
            _GroupNorm(_GROUPS, out_channels),
            nn.ReLU(inplace=True),
        )


class DenseDecoder(nn.Module):
    """Maps of foreground, contact, distance and offset at half the tile's resolution.

    Args:
        level_channels: Channels of the encoder's levels, finest first; the last is the image embedding.
        channels: Channels of the pyramid, a multiple of 8.
        fine_channels: Channels at half the tile's resolution, a multiple of 8.
    """

    def __init__(self, level_channels: Sequence[int], channels: int, fine_channels: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, channels, 1, bias=False), _GroupNorm(_GROUPS, channels))
            for count in level_channels
        )
        self.blocks = nn.ModuleList(_ConvNormAct(channels, channels) for _ in level_channels)
        self.narrow = nn.Conv2d(channels, fine_channels, 1)
        stem_channels = max(_GROUPS, fine_channels // 2 // _GROUPS * _GROUPS)
        self.stem = _ConvNormAct(3, stem_channels, kernel=5, stride=STRIDE)
        self.fine = nn.Sequential(
            _ConvNormAct(fine_channels + stem_channels, fine_channels), _ConvNormAct(fine_channels, fine_channels)
        )
        self.head = nn.Conv2d(fine_channels, len(MAPS), 1)

    def forward(self, levels: Sequence[Tensor], pixel_values: Tensor) -> Tensor:
        """Decode.

        Args:
            levels: The encoder's levels, (B, C_i, h_i, w_i), finest first.
            pixel_values: (B, 3, H, W) normalised pixels at the tile's own resolution; H and W even.

        Returns:
            float32 (B, 5, H / 2, W / 2): logits of foreground and contact, distance, and offsets (y, x) in units of
            :data:`OFFSET_UNIT`; :func:`activate` makes maps of them.
        """
        features: Tensor | None = None
        for level, project, block in zip(
            reversed(levels), reversed(self.projections), reversed(self.blocks), strict=True
        ):
            projected = project(level)
            features = block(projected if features is None else projected + _resize(features, projected))
        assert features is not None
        stem = self.stem(pixel_values.contiguous(memory_format=torch.channels_last))
        fine = torch.cat([_resize(self.narrow(features), stem), stem], dim=1)
        result: Tensor = self.head(self.fine(fine)).float()
        return result


def activate(raw: Tensor) -> Tensor:
    """What the network gives, as maps.

    Args:
        raw: (B, 5, h, w) of :class:`DenseDecoder`.

    Returns:
        float32 (B, 5, h, w): the maps named in :data:`nuclora.data.targets.MAPS`; offsets in tile pixels.
    """
    return torch.cat([raw[:, :2].sigmoid(), raw[:, 2:3].clamp(0, 1), raw[:, 3:] * OFFSET_UNIT], dim=1)


def _resize(features: Tensor, like: Tensor) -> Tensor:
    if features.shape[-2:] == like.shape[-2:]:
        return features
    return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=False)
