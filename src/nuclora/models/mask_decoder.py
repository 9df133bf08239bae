"""SAM's mask decoder for many prompts of one image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamAttention, SamMaskDecoder, SamTwoWayAttentionBlock


class MaskDecoder(SamMaskDecoder):  # type: ignore[misc]
    """`transformers`' mask decoder, with its weights and results, in half the time.

    What all prompts share is computed once, and not once a prompt: the first layer's keys, values and image queries.
    The transposed convolutions, whose kernels do not overlap, are linear maps of each cell; so features stay
    channels-last, and layer norms need no transposed copies.
    """

    def forward(
        self, image_embeddings: Tensor, positions: Tensor, sparse: Tensor, dense: Tensor, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Segment what prompts ask for, of one image or each of its own.

        Args:
            image_embeddings: (1, C, h, w), or (N, C, h, w) where each prompt has its own.
            positions: Encoding of the cells' centres, (1, C, h, w).
            sparse: Embeddings of N prompts of T points each, (N, T, C).
            dense: Embedding of mask prompts, (1, C, 1, 1) or (1, C, h, w).
            multimask: Three masks a prompt, else one.

        Returns:
            Logits (N, M, 4h, 4w) and predicted IoU (N, M).
        """
        height, width = image_embeddings.shape[-2:]
        cells = (image_embeddings + dense.to(image_embeddings.dtype)).flatten(2).transpose(1, 2)
        positions = positions.to(image_embeddings.dtype).flatten(2).transpose(1, 2)
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
        tokens, cells = self._transform(tokens, cells, positions)
        wanted = range(1, self.num_mask_tokens) if multimask else range(1)
        kernels = torch.stack([self.output_hypernetworks_mlps[index](tokens[:, 1 + index]) for index in wanted], dim=1)
        logits = self._upscale(cells, height, width) @ kernels.transpose(1, 2)
        # (N, h * w, y, x, y, x, M): the cell, its quarter, and the quarter's quarter.
        logits = logits.reshape(-1, height, width, 2, 2, 2, 2, len(wanted))
        logits = logits.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(-1, len(wanted), 4 * height, 4 * width)
        return logits, self.iou_prediction_head(tokens[:, 0])[:, list(wanted)]

    def _transform(self, tokens: Tensor, cells: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The two-way transformer: (N, T, C) tokens and (1 or N, h * w, C) cells to the same for each prompt."""
        transformer = self.transformer
        prompts = tokens
        for layer in transformer.layers:
            tokens, cells = _two_way(layer, tokens, cells, prompts, positions)
        attended = _attend(transformer.final_attn_token_to_image, tokens + prompts, cells + positions, cells)
        return transformer.layer_norm_final_attn(tokens + attended), cells

    def _upscale(self, cells: Tensor, height: int, width: int) -> Tensor:
        """(N, h * w, C) to (N, h * w * 16, C / 8), the sixteen in two levels of quarters."""
        features = _transposed_convolution(cells, self.upscale_conv1)
        norm = self.upscale_layer_norm
        features = F.gelu(F.layer_norm(features, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
        features = F.gelu(_transposed_convolution(features, self.upscale_conv2))
        return features.reshape(len(cells), height * width * 16, -1)


def _two_way(
    layer: SamTwoWayAttentionBlock, tokens: Tensor, cells: Tensor, prompts: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    if layer.skip_first_layer_pe:
        tokens = _attend(layer.self_attn, tokens, tokens, tokens)
    else:
        query = tokens + prompts
        tokens = tokens + _attend(layer.self_attn, query, query, tokens)
    tokens = layer.layer_norm1(tokens)
    placed = cells + positions
    tokens = layer.layer_norm2(tokens + _attend(layer.cross_attn_token_to_image, tokens + prompts, placed, cells))
    tokens = layer.layer_norm3(tokens + layer.mlp(tokens))
    attended = _attend(layer.cross_attn_image_to_token, placed, tokens + prompts, tokens)
    return tokens, layer.layer_norm4(cells + attended.to(cells.dtype))


def _attend(attention: SamAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention between (N or 1, Q, C) queries and (N or 1, K, C) keys: (N, Q, C)."""
    heads = attention.num_attention_heads
    query, key, value = (
        projection(features).reshape(*features.shape[:2], heads, -1).transpose(1, 2)
        for projection, features in (
            (attention.q_proj, query),
            (attention.k_proj, key),
            (attention.v_proj, value),
        )
    )
    # Not the fused kernel: on a CPU its backward is slow with as few keys as a prompt has.
    weights = (query @ key.transpose(-2, -1) * attention.scaling).softmax(-1)
    attended = weights @ value
    result: Tensor = attention.out_proj(attended.transpose(1, 2).flatten(2))
    return result


def _transposed_convolution(features: Tensor, convolution: nn.ConvTranspose2d) -> Tensor:
    """A 2x2 transposed convolution of stride 2 over (..., C) cells: (..., 2, 2, C'), row then column."""
    weight = convolution.weight.permute(2, 3, 1, 0)
    bias = convolution.bias
    assert bias is not None
    mapped = F.linear(features, weight.flatten(0, 2), bias.repeat(4))
    return mapped.reshape(*features.shape[:-1], *weight.shape[:3])
