"""SAM's ViT image encoder for any input size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from transformers.models.sam.modeling_sam import SamVisionEncoder


class ViT(SamVisionEncoder):  # type: ignore[misc]
    """`transformers`' encoder with its absolute positions resized to the input's grid.

    Relative positions need nothing: `transformers` resizes them to the grid at each call, and windows keep their size.
    """

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed images.

        Args:
            pixel_values: (batch, 3, size, size), the size a multiple of the patch size.

        Returns:
            Image embeddings, (batch, output_channels, size / patch_size, size / patch_size).
        """
        return self.levels(pixel_values)[-1]

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of :meth:`levels`."""
        hidden, output = self.config.hidden_size, self.config.output_channels
        return (*(hidden for _ in self._tapped()), output)

    def levels(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Features after each quarter of the blocks, first to last, and last the image embeddings.

        For SAM's ViTs these are the blocks with global attention.

        Args:
            pixel_values: As in :meth:`forward`.

        Returns:
            (batch, channels, size / patch_size, size / patch_size) each, with :attr:`level_channels`.
        """
        # Not patch_embed's own forward, which insists on the configured size.
        hidden_states = self.patch_embed.projection(pixel_values).permute(0, 2, 3, 1)
        if self.pos_embed is not None:
            hidden_states = hidden_states + self._positions(hidden_states.shape[1], hidden_states.shape[2])
        tapped = self._tapped()
        found: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            hidden_states = layer(hidden_states)
            if index in tapped:
                found.append(hidden_states.permute(0, 3, 1, 2))
        return (*found, self.neck(hidden_states))

    def _tapped(self) -> tuple[int, ...]:
        """Indices of the blocks whose output is a level; fewer than four where there are fewer blocks."""
        count = len(self.layers)
        return tuple(sorted({count * quarter // 4 - 1 for quarter in (1, 2, 3, 4)} - {-1}))

    def _positions(self, height: int, width: int) -> Tensor:
        """The absolute positions, (1, height, width, channels)."""
        if self.pos_embed.shape[1:3] == (height, width):
            result: Tensor = self.pos_embed
            return result
        positions = self.pos_embed.permute(0, 3, 1, 2)
        resized = F.interpolate(positions, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
        return resized.permute(0, 2, 3, 1)
