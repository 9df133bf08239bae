"""One training step's loss, as a module, so that DDP sees one forward."""

from __future__ import annotations

from collections.abc import Sequence

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

    def forward(self, samples: Sequence[TrainingSample]) -> Tensor:
        """Loss of a batch; tiles without nuclei count as 0.

        Args:
            samples: Tiles of one input size.

        Returns:
            float32 scalar.
        """
        sam: NucleiSam = self.model.get_base_model()
        levels = sam.levels(torch.stack([sample.pixel_values for sample in samples]))
        embeddings = levels[-1]
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
        total = total / len(samples)
        if self.dense is not None:
            total = total + self._dense_loss(sam, levels, samples, self.dense)
        # Without a prompt in the whole batch the loss must still hang on the graph, or DDP waits for ever.
        return total + 0.0 * embeddings.float().sum()

    def _dense_loss(
        self, sam: NucleiSam, levels: Sequence[Tensor], samples: Sequence[TrainingSample], settings: DenseSettings
    ) -> Tensor:
        truths = [sample.dense for sample in samples if sample.dense is not None]
        assert sam.dense_decoder is not None and len(truths) == len(samples)  # noqa: PT018
        raw = sam.dense_decoder(levels, torch.stack([truth.pixel_values for truth in truths]))
        maps = torch.stack([truth.maps for truth in truths])
        return dense_loss(raw, maps, torch.stack([truth.weights for truth in truths]), settings)

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
