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
        parts = [
            (index, sample, chosen)
            for index, sample in enumerate(samples)
            for kind in (sample.is_box, ~sample.is_box)
            for chosen in torch.split(kind.nonzero().flatten(), self.chunk)
            if len(chosen)
        ]
        recompute = sum(len(chosen) for _, _, chosen in parts) > self.chunk
        # Without a prompt in the whole batch the loss must still hang on the graph, or DDP waits for ever.
        total = 0.0 * embeddings.float().sum()
        for index, sample, chosen in parts:
            arguments = (sam, embeddings[index : index + 1], sample, chosen)
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


def split(samples: Sequence[TrainingSample], at_once: int) -> list[Sequence[TrainingSample]]:
    """The samples in order, in parts of so many; the last may have fewer."""
    return [samples[start : start + at_once] for start in range(0, len(samples), at_once)]
