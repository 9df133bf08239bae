"""One training step's loss, as a module, so that DDP sees one forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nuclora.models.sam import NucleiSam
from nuclora.recipe import DenseSettings, LossSettings
from nuclora.training.dense_loss import dense_loss
from nuclora.training.losses import mask_bce, mask_dice, mask_iou
from nuclora.training.samples import TrainingSample

Prompts: TypeAlias = Sequence[tuple[int, slice]]
"""A tile of a batch by index, and which of its prompts; several times."""
_FEW = 4
"""Prompts a tile."""


class TileLoss(nn.Module):
    """Mean loss over tiles: each tile is encoded once, for the dense decoder and for a prompt a nucleus.

    Args:
        model: The adapted model.
        loss: Weights of the terms of a prompted mask.
        dense: Weights of the dense decoder's terms, where the model has one.
        chunk: Prompts decoded at once. Where a batch needs several chunks each is computed again in the
            backward pass, so that memory grows with the chunk and not with a tile's nuclei.
    """

    def __init__(self, model: PeftModel, loss: LossSettings, chunk: int, dense: DenseSettings | None = None) -> None:
        super().__init__()
        self.model = model
        self.settings = loss
        self.dense = dense
        self.chunk = chunk

    def forward(self, samples: Sequence[TrainingSample], at_once: int | None = None) -> Tensor:
        """Loss of a batch; tiles without nuclei count as 0.

        Args:
            samples: Tiles of one input size.
            at_once: Tiles that go through the network together; all by default. Where there are more, each part is
                computed again in the backward pass, so that memory grows with a part and not with the batch. The
                dense loss still is that of the whole batch, whose means and overlaps do not split into parts.

        Returns:
            float32 scalar.
        """
        parts = split(samples, at_once or len(samples))
        if len(parts) == 1:
            outputs = [self._network(samples)]
        else:
            outputs = [checkpoint(self._network, part, use_reentrant=False) for part in parts]
        total = torch.stack([prompted for prompted, _ in outputs]).sum() / len(samples)
        if self.dense is not None:
            truths = [sample.dense for sample in samples if sample.dense is not None]
            raw = torch.cat([found for _, found in outputs if found is not None])
            maps = torch.stack([truth.maps for truth in truths])
            total = total + dense_loss(raw, maps, torch.stack([truth.weights for truth in truths]), self.dense)
        return total

    def _network(self, samples: Sequence[TrainingSample]) -> tuple[Tensor, Tensor | None]:
        """Sum of the tiles' losses of prompted masks, and the dense decoder's maps, where there is one."""
        sam: NucleiSam = self.model.get_base_model()
        levels = sam.levels(torch.stack([sample.pixel_values for sample in samples]))
        embeddings = levels[-1]
        counts = [len(sample.ids) for sample in samples]
        recompute = sum(counts) > self.chunk
        # Without a prompt in the whole batch the loss must still hang on the graph, or DDP waits for ever.
        total = 0.0 * embeddings.float().sum()
        for prompts in passes(counts, self.chunk):
            arguments = (sam, embeddings, samples, prompts)
            if recompute:
                total = total + checkpoint(self._prompted_loss, *arguments, use_reentrant=False)
            else:
                total = total + self._prompted_loss(*arguments)
        return total, None if self.dense is None else self._dense_maps(sam, levels, samples)

    def _dense_maps(self, sam: NucleiSam, levels: Sequence[Tensor], samples: Sequence[TrainingSample]) -> Tensor:
        truths = [sample.dense for sample in samples if sample.dense is not None]
        assert sam.dense_decoder is not None and len(truths) == len(samples)  # noqa: PT018
        raw: Tensor = sam.dense_decoder(levels, torch.stack([truth.pixel_values for truth in truths]))
        return raw

    def _prompted_loss(
        self, sam: NucleiSam, embeddings: Tensor, samples: Sequence[TrainingSample], prompts: Prompts
    ) -> Tensor:
        """Sum of the losses of prompts that go through the mask decoder together, each with its share of its tile."""

        def of_prompts(name: str) -> Tensor:
            return torch.cat([getattr(samples[tile], name)[chosen] for tile, chosen in prompts])

        ids, points = of_prompts("ids"), of_prompts("points")[:, None]
        # Where all are of one tile, what they share is computed once; else each prompt has its tile's.
        tiles = [tile for tile, chosen in prompts for _ in range(chosen.start, chosen.stop)]
        tiles = tiles if len(prompts) > 1 else tiles[:1]
        size = embeddings.shape[-1] * sam.stride
        inside = torch.ones(points.shape[:2], dtype=torch.int64, device=points.device)
        # All as boxes and all as points: to ask which is which would make a GPU wait.
        sparse = torch.where(
            of_prompts("is_box")[:, None, None],
            sam.embed_prompts(size, boxes=of_prompts("boxes")),
            sam.embed_prompts(size, points=points, point_labels=inside),
        )
        prediction = sam.decode_embedded(torch.stack([embeddings[tile] for tile in tiles]), sparse)
        labels = torch.stack([samples[tile].labels for tile in tiles])
        valid = torch.stack([samples[tile].valid for tile in tiles])
        logits = F.interpolate(prediction.logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        targets = labels == ids[:, None, None]
        losses = torch.zeros(len(ids), device=logits.device)
        if self.settings.bce:
            losses = losses + self.settings.bce * mask_bce(logits, targets, valid)
        if self.settings.dice:
            losses = losses + self.settings.dice * mask_dice(logits, targets, valid)
        if self.settings.iou:
            actual = mask_iou(logits, targets, valid)
            losses = losses + self.settings.iou * (prediction.iou.float()[:, 0] - actual) ** 2
        return (losses * of_prompts("weights")).sum()


def passes(counts: Sequence[int], chunk: int) -> list[Prompts]:
    """Which prompts go through the mask decoder together.

    Those of one tile, as many as `chunk` at once: what its prompts share is computed once. Where tiles have so few that
    they share little, those of all.

    Args:
        counts: Prompts of each tile.
        chunk: Prompts at once.
    """
    pieces = [
        (tile, slice(start, min(start + chunk, count)))
        for tile, count in enumerate(counts)
        for start in range(0, count, chunk)
    ]
    if 0 < sum(counts) <= min(chunk, _FEW * len(counts)):
        return [pieces]
    return [[piece] for piece in pieces]


def split(samples: Sequence[TrainingSample], at_once: int) -> list[Sequence[TrainingSample]]:
    """The samples in order, in parts of so many; the last may have fewer."""
    return [samples[start : start + at_once] for start in range(0, len(samples), at_once)]
