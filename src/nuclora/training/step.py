"""One training step's loss, as a module, so that DDP sees one forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nuclora.models.sam import NucleiSam
from nuclora.recipe import LossSettings
from nuclora.training.losses import mask_bce, mask_dice, mask_iou
from nuclora.training.samples import TrainingSample


class MaskLoss(nn.Module):
    """Mean loss over tiles: each tile is encoded once, and the decoder prompted once a nucleus.

    Args:
        model: The adapted model.
        loss: Weights of the terms.
        chunk: Prompts decoded at once. Where a batch needs several chunks each is computed again in the
            backward pass, so that memory grows with the chunk and not with a tile's nuclei.
    """

    def __init__(self, model: PeftModel, loss: LossSettings, chunk: int) -> None:
        super().__init__()
        self.model = model
        self.settings = loss
        self.chunk = chunk

    def forward(self, samples: Sequence[TrainingSample]) -> Tensor:
        """Loss of a batch; tiles without nuclei count as 0.

        Args:
            samples: Tiles of one input size.

        Returns:
            float32 scalar.
        """
        sam: NucleiSam = self.model.get_base_model()
        embeddings = sam.encode(torch.stack([sample.pixel_values for sample in samples]))
        parts = [
            (index, sample, chosen)
            for index, sample in enumerate(samples)
            for kind in (sample.is_box, ~sample.is_box)
            for chosen in torch.split(kind.nonzero().flatten(), self.chunk)
            if len(chosen)
        ]
        recompute = sum(len(chosen) for _, _, chosen in parts) > self.chunk
        total = embeddings.new_zeros((), dtype=torch.float32)
        for index, sample, chosen in parts:
            arguments = (sam, embeddings[index : index + 1], sample, chosen)
            if recompute:
                total = total + checkpoint(self._prompted_loss, *arguments, use_reentrant=False)
            else:
                total = total + self._prompted_loss(*arguments)
        # Without a prompt in the whole batch the loss must still hang on the graph, or DDP waits for ever.
        return total / len(samples) + 0.0 * embeddings.float().sum()

    def _prompted_loss(self, sam: NucleiSam, embedding: Tensor, sample: TrainingSample, chosen: Tensor) -> Tensor:
        if sample.is_box[chosen[0]]:
            prediction = sam.decode(embedding, boxes=sample.boxes[chosen])
        else:
            points = sample.points[chosen, None]
            labels = torch.ones(points.shape[:2], dtype=torch.int64, device=points.device)
            prediction = sam.decode(embedding, points=points, point_labels=labels)
        size = sample.labels.shape[-2:]
        logits = F.interpolate(prediction.logits.float(), size, mode="bilinear", align_corners=False)[:, 0]
        targets = sample.labels == sample.ids[chosen, None, None]
        losses = torch.zeros(len(chosen), device=logits.device)
        if self.settings.bce:
            losses = losses + self.settings.bce * mask_bce(logits, targets, sample.valid)
        if self.settings.dice:
            losses = losses + self.settings.dice * mask_dice(logits, targets, sample.valid)
        if self.settings.iou:
            actual = mask_iou(logits, targets, sample.valid)
            losses = losses + self.settings.iou * (prediction.iou.float()[:, 0] - actual) ** 2
        return (losses * sample.weights[chosen]).sum()
