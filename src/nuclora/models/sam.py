"""SAM as the training and the inference use it: encode an image once, decode many prompts.

Kirillov et al. 2023, "Segment Anything". The parts and their names are those of `transformers.SamModel`; this class
lifts its fixed input size and knows other image encoders.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import SamConfig
from transformers.models.sam.modeling_sam import SamPromptEncoder

from nuclora.models.dense_sam import DenseSam
from nuclora.models.mask_decoder import MaskDecoder
from nuclora.models.tiny_vit import TinyViT
from nuclora.models.vit import ViT


class MaskPrediction(NamedTuple):
    """Masks of N prompts, M for each.

    Args:
        logits: (N, M, 4h, 4w) at a quarter of the embedding's stride; inside where above 0.
        iou: (N, M) the decoder's own estimate of each mask's IoU.
    """

    logits: Tensor
    iou: Tensor


class PositionalEncoding(nn.Module):
    """Random Fourier features of points in the unit square.

    The matrix is a constant of the checkpoint: saved and loaded, never trained.
    """

    positional_embedding: Tensor

    def __init__(self, num_pos_feats: int) -> None:
        super().__init__()
        self.register_buffer("positional_embedding", torch.randn(2, num_pos_feats))

    def forward(self, coordinates: Tensor, input_shape: tuple[int, int] | None = None) -> Tensor:
        """Encode (..., 2) xy points, in pixels of `input_shape` or, without it, in units of the side."""
        if input_shape is not None:
            height, width = input_shape
            coordinates = coordinates / coordinates.new_tensor([width, height])
        # Half precision would move a point by pixels.
        with torch.autocast(coordinates.device.type, enabled=False):
            matrix = self.positional_embedding.float()
            phases = 2 * math.pi * ((2 * coordinates.float() - 1) @ matrix)
            return torch.cat([phases.sin(), phases.cos()], dim=-1)

    def grid(self, height: int, width: int) -> Tensor:
        """The encoding of every cell's centre, (1, 2 * num_pos_feats, height, width)."""
        device = self.positional_embedding.device
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        encoding: Tensor = self(torch.stack([columns, rows], dim=-1))
        return encoding.permute(2, 0, 1)[None]


class PromptEncoder(SamPromptEncoder):  # type: ignore[misc]
    """`transformers`' prompt encoder for any input size."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__(config)
        self.shared_embedding = PositionalEncoding(config.vision_config.num_pos_feats)

    def forward(self, points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, input_size: int) -> Tensor:
        """Embed the prompts of one image.

        Args:
            points: (1, N, K, 2) xy in pixels of the input.
            labels: (1, N, K) 1 foreground, 0 background, -1 padding.
            boxes: (1, N, 4) xyxy in pixels of the input.
            input_size: Side of the square input in pixels.

        Returns:
            Sparse embeddings (1, N, T, C).
        """
        # The parent divides by its own input size, after it has moved coordinates to the pixel's centre.
        scale = self.input_image_size / input_size
        if points is not None:
            points = (points + 0.5) * scale - 0.5
        if boxes is not None:
            boxes = (boxes + 0.5) * scale - 0.5
        sparse: Tensor = super().forward(points, labels, boxes, None)[0]
        return sparse


class NucleiSam(DenseSam):
    """A SAM with any of our image encoders, for any input size that the encoder's stride divides.

    Args:
        vision_encoder: Its `levels` maps (B, 3, S, S) to features, last (B, C, S / stride, S / stride).
        config: `transformers`' configuration; the prompt encoder and the mask decoder are built from it.
        stride: Input pixels per cell of the image embedding.
        name_or_path: Name of the base; PEFT writes it into adapters.
    """

    def __init__(self, vision_encoder: TinyViT | ViT, config: SamConfig, stride: int, name_or_path: str) -> None:
        super().__init__(vision_encoder, stride, name_or_path)
        self.shared_image_embedding = PositionalEncoding(config.vision_config.num_pos_feats)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config.mask_decoder_config)

    def decode(
        self,
        image_embeddings: Tensor,
        *,
        boxes: Tensor | None = None,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        multimask: bool = False,
    ) -> MaskPrediction:
        """Segment what N prompts ask for in one image.

        Args:
            image_embeddings: (1, C, h, w) of :meth:`encode`.
            boxes: (N, 4) xyxy in pixels of the input.
            points: (N, K, 2) xy in pixels of the input; boxes and points may come together.
            point_labels: (N, K) 1 foreground, 0 background, -1 padding.
            multimask: Three masks a prompt, for prompts that can mean several things; else one.
        """
        given = boxes if boxes is not None else points
        if given is None or (points is None) != (point_labels is None):
            raise ValueError("decode needs boxes, or points with point_labels")
        height, width = image_embeddings.shape[-2:]
        if len(given) == 0:
            count = self.mask_decoder.num_multimask_outputs if multimask else 1
            return MaskPrediction(
                image_embeddings.new_zeros(0, count, 4 * height, 4 * width),
                image_embeddings.new_zeros(0, count),
            )
        sparse = self.embed_prompts(width * self.stride, boxes=boxes, points=points, point_labels=point_labels)
        return self.decode_embedded(image_embeddings, sparse, multimask=multimask)

    def embed_prompts(
        self,
        input_size: int,
        *,
        boxes: Tensor | None = None,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
    ) -> Tensor:
        """Embed N prompts as :meth:`decode` takes them: (N, T, C), two tokens for a box or for a single point.

        Args:
            input_size: Side of the square input in pixels.
            boxes: As in :meth:`decode`.
            points: As in :meth:`decode`.
            point_labels: As in :meth:`decode`.
        """
        sparse: Tensor = self.prompt_encoder(
            None if points is None else points[None],
            None if point_labels is None else point_labels[None],
            None if boxes is None else boxes[None],
            input_size,
        )
        return sparse[0]

    def decode_embedded(self, image_embeddings: Tensor, sparse: Tensor, *, multimask: bool = False) -> MaskPrediction:
        """Segment what N embedded prompts ask for, of one image or each of its own.

        Args:
            image_embeddings: (1, C, h, w) of :meth:`encode`, which all prompts share, or (N, C, h, w).
            sparse: (N, T, C) of :meth:`embed_prompts`.
            multimask: As in :meth:`decode`.
        """
        positions = self.shared_image_embedding.grid(*image_embeddings.shape[-2:])
        dense = self.prompt_encoder.no_mask_embed.weight[:, :, None, None]
        logits, iou = self.mask_decoder(image_embeddings, positions, sparse, dense, multimask)
        return MaskPrediction(logits, iou)
