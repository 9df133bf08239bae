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
        # Not patch_embed's own forward, which insists on the configured size.
        hidden_states = self.patch_embed.projection(pixel_values).permute(0, 2, 3, 1)
        if self.pos_embed is not None:
            hidden_states = hidden_states + self._positions(hidden_states.shape[1], hidden_states.shape[2])
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        result: Tensor = self.neck(hidden_states)
        return result

    def _positions(self, height: int, width: int) -> Tensor:
        """The absolute positions, (1, height, width, channels)."""
        if self.pos_embed.shape[1:3] == (height, width):
            result: Tensor = self.pos_embed
            return result
        positions = self.pos_embed.permute(0, 3, 1, 2)
        resized = F.interpolate(positions, size=(height, width), mode="bicubic", align_corners=False, antialias=True)
        return resized.permute(0, 2, 3, 1)
