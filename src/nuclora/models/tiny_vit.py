"""TinyViT, the image encoder of MobileSAM and LiteMedSAM.

Wu et al. 2022, "TinyViT: Fast Pretraining Distillation for Small Vision Transformers"; in SAM: Zhang et al. 2023,
"Faster Segment Anything". The published code fixes the grid of every stage; here it comes from the tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nuclora.models.recompute import run_block


@dataclass(frozen=True)
class TinyViTConfig:
    """Architecture of a TinyViT encoder; the defaults are MobileSAM's.

    Args:
        embed_dims: Channels of the four stages.
        depths: Blocks of the four stages; the first stage is convolutional.
        num_heads: Attention heads of the four stages; the first is unused.
        window_sizes: Sides of the attention windows in cells; the first is unused.
        stem_kernel: Side of the two stem convolutions; 3 halves the resolution twice, 1 keeps it.
        output_channels: Channels of the image embedding.
    """

    embed_dims: tuple[int, int, int, int] = (64, 128, 160, 320)
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    num_heads: tuple[int, int, int, int] = (2, 4, 5, 10)
    window_sizes: tuple[int, int, int, int] = (7, 7, 14, 7)
    stem_kernel: int = 3
    output_channels: int = 256

    @property
    def stride(self) -> int:
        """Input pixels per cell of the embedding."""
        return 16 if self.stem_kernel == 3 else 4


class FrozenNormConv(nn.Module):
    """A convolution and the batch norm behind it, with the norm always in evaluation mode.

    The norm is folded into the kernel at each call: exact, and one pass over the activations fewer.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        weight = conv.weight * scale[:, None, None, None]
        bias = norm.bias - norm.running_mean * scale
        return F.conv2d(features, weight, bias, conv.stride, conv.padding, groups=conv.groups)


class PatchEmbedding(nn.Module):
    """The stem: pixels to the first stage's features."""

    def __init__(self, embed_dim: int, kernel: int) -> None:
        super().__init__()
        stride = 2 if kernel == 3 else 1
        self.conv1 = FrozenNormConv(3, embed_dim // 2, kernel, stride)
        self.conv2 = FrozenNormConv(embed_dim // 2, embed_dim, kernel, stride)

    def forward(self, pixel_values: Tensor) -> Tensor:
        result: Tensor = self.conv2(F.gelu(self.conv1(pixel_values)))
        return result


class InvertedBottleneck(nn.Module):
    """MobileNet's residual block: widen fourfold, 3x3 depthwise, narrow."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 4 * channels
        self.conv1 = FrozenNormConv(channels, hidden)
        self.conv2 = FrozenNormConv(hidden, hidden, 3, groups=hidden)
        self.conv3 = FrozenNormConv(hidden, channels)

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.gelu(self.conv1(features))
        hidden = F.gelu(self.conv2(hidden))
        return F.gelu(features + self.conv3(hidden))


class PatchMerging(nn.Module):
    """Between two stages: new channels, and half the resolution where `stride` is 2."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = FrozenNormConv(in_channels, out_channels)
        self.conv2 = FrozenNormConv(out_channels, out_channels, 3, stride, groups=out_channels)
        self.conv3 = FrozenNormConv(out_channels, out_channels)

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.gelu(self.conv1(features))
        result: Tensor = self.conv3(F.gelu(self.conv2(hidden)))
        return result


class WindowAttention(nn.Module):
    """Self-attention inside windows, with one learned bias per head and absolute offset."""

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window_size**2))

    def position_bias(self) -> Tensor:
        """The bias of each query and key of a window, (heads, tokens, tokens)."""
        size = self.window_size
        cells = torch.arange(size, device=self.attention_biases.device)
        offset = (cells[:, None] - cells).abs()
        # Query row, query column, key row, key column.
        index = offset[:, None, :, None] * size + offset[None, :, None, :]
        return self.attention_biases[:, index.reshape(size**2, size**2)]

    def forward(self, windows: Tensor) -> Tensor:
        """(windows, tokens, dim) to the same shape."""
        count, tokens, dim = windows.shape
        qkv = self.qkv(self.norm(windows)).reshape(count, tokens, self.num_heads, -1)
        query, key, value = qkv.transpose(1, 2).chunk(3, dim=-1)
        bias = self.position_bias().to(query.dtype)
        attended = biased_attention(query, key, value, bias)
        result: Tensor = self.proj(attended.transpose(1, 2).reshape(count, tokens, dim))
        return result


def biased_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention with an additive bias, (windows, heads, tokens, channels) each."""
    on_cpu = query.requires_grad and query.device.type == "cpu"
    if on_cpu and (query.dtype == torch.bfloat16 or bias.requires_grad):
        # On a CPU the fused kernel's backward in bfloat16 takes 2 to 6 times as long as the plain form's; and where the
        # bias trains there is no fused kernel, but a form that takes a fifth longer.
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1) + bias
        attended: Tensor = scores.softmax(-1) @ value
        return attended
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])


class FeedForward(nn.Module):
    """Layer norm and a two-layer perceptron."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(self.norm(tokens))))
        return result


class TinyViTBlock(nn.Module):
    """Window attention, a depthwise 3x3 convolution, and a perceptron."""

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.attn = WindowAttention(dim, num_heads, window_size)
        self.local_conv = FrozenNormConv(dim, dim, 3, groups=dim)
        self.mlp = FeedForward(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, height, width, dim) to the same shape."""
        tokens = tokens + self._attend(tokens)
        tokens = self.local_conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        result: Tensor = tokens + self.mlp(tokens)
        return result

    def _attend(self, tokens: Tensor) -> Tensor:
        batch, height, width, dim = tokens.shape
        size = self.attn.window_size
        # The published net does not mask the padding: its tokens, zero before the norm, are attended to.
        padded = F.pad(tokens, (0, 0, 0, -width % size, 0, -height % size))
        rows, columns = padded.shape[1] // size, padded.shape[2] // size
        windows = padded.reshape(batch, rows, size, columns, size, dim).transpose(2, 3)
        attended = self.attn(windows.reshape(-1, size * size, dim))
        attended = attended.reshape(batch, rows, columns, size, size, dim).transpose(2, 3)
        result: Tensor = attended.reshape(batch, rows * size, columns * size, dim)[:, :height, :width]
        return result


class ConvStage(nn.Module):
    """The first stage: inverted bottlenecks, then merging."""

    def __init__(self, dim: int, depth: int, out_dim: int) -> None:
        super().__init__()
        self.checkpointing = False
        self.blocks = nn.ModuleList(InvertedBottleneck(dim) for _ in range(depth))
        self.downsample = PatchMerging(dim, out_dim, stride=2)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, dim, height, width) to the same shape, and to (batch, height / 2, width / 2, out_dim)."""
        for block in self.blocks:
            features = run_block(block, features, self.checkpointing)
        return features, self.downsample(features).permute(0, 2, 3, 1)


class AttentionStage(nn.Module):
    """A stage of attention blocks, then merging where another stage follows."""

    def __init__(
        self, dim: int, depth: int, num_heads: int, window_size: int, out_dim: int | None, stride: int
    ) -> None:
        super().__init__()
        self.checkpointing = False
        self.blocks = nn.ModuleList(TinyViTBlock(dim, num_heads, window_size) for _ in range(depth))
        self.downsample = None if out_dim is None else PatchMerging(dim, out_dim, stride)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, height, width, dim) to (batch, dim, height, width), and to the next stage's tokens."""
        for block in self.blocks:
            tokens = run_block(block, tokens, self.checkpointing)
        features = tokens.permute(0, 3, 1, 2)
        if self.downsample is None:
            return features, tokens
        return features, self.downsample(features).permute(0, 2, 3, 1)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (batch, channels, height, width)."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Neck(nn.Module):
    """SAM's neck, from the last stage's tokens to the image embedding.

    As `transformers` has it, with its names; not from there, so that finding nuclei need not wait for that import.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.layer_norm1 = ChannelNorm(out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.layer_norm2 = ChannelNorm(out_channels, eps=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, height, width, in_channels) to (batch, out_channels, height, width)."""
        features = self.layer_norm1(self.conv1(tokens.permute(0, 3, 1, 2)))
        result: Tensor = self.layer_norm2(self.conv2(features))
        return result


class TinyViT(nn.Module):
    """TinyViT with SAM's neck, for any input size that its stride divides."""

    def __init__(self, config: TinyViTConfig) -> None:
        super().__init__()
        self.config = config
        dims, depths = config.embed_dims, config.depths
        self.patch_embed = PatchEmbedding(dims[0], config.stem_kernel)
        self.layers = nn.ModuleList([ConvStage(dims[0], depths[0], dims[1])])
        for stage in (1, 2, 3):
            self.layers.append(
                AttentionStage(
                    dims[stage],
                    depths[stage],
                    config.num_heads[stage],
                    config.window_sizes[stage],
                    out_dim=dims[stage + 1] if stage < 3 else None,
                    # SAM needs fine embeddings, so the last merging keeps the resolution.
                    stride=2 if stage == 1 else 1,
                )
            )
        self.neck = Neck(dims[3], config.output_channels)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embed images.

        Args:
            pixel_values: (batch, 3, size, size), the size a multiple of the stride.

        Returns:
            Image embeddings, (batch, output_channels, size / stride, size / stride).
        """
        return self.levels(pixel_values)[-1]

    def checkpoint_blocks(self) -> None:
        """In training, compute each block again in the backward pass instead of keeping what it computed."""
        for stage in self.layers:
            assert isinstance(stage, (ConvStage, AttentionStage))
            stage.checkpointing = True

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of :meth:`levels`."""
        return (*self.config.embed_dims, self.config.output_channels)

    def levels(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Features of each stage before its merging, finest first, and last the image embeddings.

        Args:
            pixel_values: As in :meth:`forward`.

        Returns:
            (batch, channels, height, width) each, with :attr:`level_channels`.
        """
        # In half precision the convolutions are twice as fast so.
        tokens = self.patch_embed(pixel_values.contiguous(memory_format=torch.channels_last))
        found: list[Tensor] = []
        for stage in self.layers:
            features, tokens = stage(tokens)
            found.append(features)
        return (*found, self.neck(tokens))
