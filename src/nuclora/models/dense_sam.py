"""The part of SAM that finds nuclei without prompts: the image encoder, and the dense decoder on its features.

It needs nothing of `transformers`, whose import takes longer than the nuclei of a tile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nuclora.errors import NucloraError
from nuclora.models.dense_decoder import DenseDecoder
from nuclora.models.tiny_vit import TinyViT
from nuclora.recipe import DenseSettings

if TYPE_CHECKING:
    from nuclora.models.vit import ViT


class DenseSam(nn.Module):
    """An image encoder, and a dense decoder where one was added.

    Args:
        vision_encoder: Its `levels` maps (B, 3, S, S) to features, last (B, C, S / stride, S / stride).
        stride: Input pixels per cell of the image embedding.
        name_or_path: Name of the base; PEFT writes it into adapters.
    """

    def __init__(self, vision_encoder: TinyViT | ViT, stride: int, name_or_path: str) -> None:
        super().__init__()
        self.stride = stride
        self.name_or_path = name_or_path
        self.vision_encoder = vision_encoder
        self.dense_decoder: DenseDecoder | None = None

    def add_dense_decoder(self, settings: DenseSettings, seed: int) -> None:
        """Add a fresh prompt-free decoder.

        Args:
            settings: Its channels.
            seed: Seed of its first weights; the global generator is left alone.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.dense_decoder = DenseDecoder(
                self.vision_encoder.level_channels, settings.channels, settings.fine_channels
            )

    def check_input(self, height: int, width: int) -> None:
        """Refuse an input that the encoder cannot take.

        Raises:
            NucloraError: It is not square, or the stride does not divide its side.
        """
        if height != width or height % self.stride:
            nearest = max(1, round(width / self.stride)) * self.stride
            raise NucloraError(
                f"input of {height} x {width} pixels; this base takes squares of a multiple of {self.stride}",
                mend=f"the nearest is {nearest}",
            )

    def forward(self, pixel_values: Tensor, own: Tensor) -> Tensor:
        """Find nuclei without prompts.

        Args:
            pixel_values: (B, 3, S, S), the windows as the encoder sees them.
            own: (B, 3, window, window), their own pixels.

        Returns:
            Raw maps, (B, 5, window / 2, window / 2), see :class:`nuclora.models.dense_decoder.DenseDecoder`.
        """
        assert self.dense_decoder is not None
        raw: Tensor = self.dense_decoder(self.levels(pixel_values), own)
        return raw

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Embed images.

        Args:
            pixel_values: (B, 3, S, S) normalised pixels.

        Returns:
            Image embeddings, (B, C, S / stride, S / stride).

        Raises:
            NucloraError: The images are not square, or the stride does not divide their side.
        """
        return self.levels(pixel_values)[-1]

    def levels(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Features of the encoder at several depths, finest first; the last are the image embeddings.

        Args:
            pixel_values: As in :meth:`encode`.

        Returns:
            What the dense decoder reads, (B, C, h, w) each.
        """
        self.check_input(*pixel_values.shape[-2:])
        levels: tuple[Tensor, ...] = self.vision_encoder.levels(pixel_values)
        return levels
