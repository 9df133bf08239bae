"""SAM's ViT image encoder for any input size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionAttention, SamVisionEncoder

from nuclora.models.recompute import run_block

# Fused kernels want head sizes of a multiple of this.
_HEAD_STEP = 8


class FusedAttention(SamVisionAttention):  # type: ignore[misc]
    """`transformers`' attention with relative positions, without a matrix of all queries and keys.

    The bias of query q at key (row, column) is the sum of a number for the row and one for the column (Li et al. 2022,
    "MViTv2"). So it is a product too: q with these numbers behind it, and k with a one at its row and one at its
    column. Then any fused kernel gives the biased attention, whose memory grows with the tokens and not with their
    square.
    """

    def forward(self, hidden_states: Tensor, output_attentions: bool | None = None) -> tuple[Tensor, None]:
        """(batch, height, width, channels) to the same shape; attention weights are never there."""
        batch, height, width, _ = hidden_states.shape
        qkv = self.qkv(hidden_states).reshape(batch, height * width, 3, self.num_attention_heads, -1)
        queries, keys, values = qkv.unbind(2)
        query, key, value = queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        size = query.shape[-1]
        if self.use_rel_pos:
            of_rows, of_columns = self._biases(queries, height, width)
            padding = -(size + height + width) % _HEAD_STEP
            query = torch.cat([query, of_rows, of_columns, query.new_zeros(*query.shape[:-1], padding)], -1)
            key = torch.cat([key, _places(height, width, padding, key).expand(*key.shape[:2], -1, -1)], -1)
            value = F.pad(value, (0, height + width + padding))
            attended = F.scaled_dot_product_attention(query, key, value, scale=self.scale)[..., :size]
        else:
            attended = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        return self.proj(attended.transpose(1, 2).reshape(batch, height, width, -1)), None

    def _biases(self, queries: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Of each query the bias at each row and at each column: (batch, heads, tokens, height) and (..., width).

        Over the scale of the attention, which multiplies them too. A key's bias goes by how far its row is from the
        query's: of the products with all distances each query has a window, one further on than its neighbour's. So one
        product serves all queries in the order that they have, and the windows are a view.

        Args:
            queries: (batch, tokens, heads, head size).
            height: Rows of tokens.
            width: Columns of tokens.
        """
        batch, _, heads, _ = queries.shape
        distances = torch.cat([self._distances(height, self.rel_pos_h), self._distances(width, self.rel_pos_w)])
        distances = (distances / self.scale).to(queries.dtype)
        # A head's queries lie evenly spaced, so this product reads them where they are.
        products = queries.flatten(0, 1).transpose(0, 1) @ distances.t()
        count = len(distances)
        image, row = height * width * count, width * count
        to_rows, to_columns = height - 1, 2 * height - 1 + width - 1
        head_first = (batch, heads, height, width)
        of_rows = products.as_strided((*head_first, height), (image, batch * image, row - 1, count, 1), to_rows)
        of_columns = products.as_strided((*head_first, width), (image, batch * image, row, count - 1, 1), to_columns)
        return of_rows.flatten(2, 3), of_columns.flatten(2, 3)

    def _distances(self, side: int, positions: Tensor) -> Tensor:
        """The positions of a key 1 - side ... side - 1 behind its query: (2 * side - 1, head size)."""
        # [query, key], so the last query sees the keys before it and the first those behind it.
        pairs = self.get_rel_pos(side, side, positions)
        return torch.cat([pairs[-1], pairs[0, 1:]])


def _places(height: int, width: int, padding: int, like: Tensor) -> Tensor:
    """A one at each token's row and one at its column, then zeros: (tokens, height + width + padding)."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, 0)
    columns = torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)
    return torch.cat([rows, columns, rows.new_zeros(len(rows), padding)], 1)


class ViT(SamVisionEncoder):  # type: ignore[misc]
    """`transformers`' encoder with its absolute positions resized to the input's grid.

    Relative positions need nothing: `transformers` resizes them to the grid at each call, and windows keep their size.
    """

    def __init__(self, config: SamVisionConfig) -> None:
        super().__init__(config)
        self.checkpointing = False
        for layer in self.layers:
            # The same weights, computed with in another way.
            layer.attn.__class__ = FusedAttention

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed images.

        Args:
            pixel_values: (batch, 3, size, size), the size a multiple of the patch size.

        Returns:
            Image embeddings, (batch, output_channels, size / patch_size, size / patch_size).
        """
        return self.levels(pixel_values)[-1]

    def checkpoint_blocks(self) -> None:
        """In training, compute each block again in the backward pass instead of keeping what it computed."""
        self.checkpointing = True

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
            hidden_states = run_block(layer, hidden_states, self.checkpointing)
            if index in tapped:
                found.append(hidden_states.permute(0, 3, 1, 2))
        return (*found, self.neck(hidden_states))

    @contextlib.contextmanager
    def fixed_positions(self, size: int) -> Iterator[None]:
        """Hold the absolute positions at one input size, for exporters that cannot resize them.

        Args:
            size: Side of the input in pixels.
        """
        own: Any = self.pos_embed  # type: ignore[has-type]
        if own is not None:
            cells = size // self.config.patch_size
            with torch.no_grad():
                self.pos_embed = nn.Parameter(self._positions(cells, cells), requires_grad=False)
        try:
            yield
        finally:
            self.pos_embed = own

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
