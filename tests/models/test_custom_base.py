"""The ViT bases against `transformers`' own SamModel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import SamModel

from nuclora.models.checkpoints import load_base

BOXES = torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 10.0, 60.0, 63.0], [1.0, 1.0, 9.0, 9.0]])
POINTS = torch.tensor([[[10.0, 12.0], [50.0, 3.0]], [[30.0, 30.0], [0.0, 0.0]], [[5.0, 60.0], [33.0, 8.0]]])
LABELS = torch.tensor([[1, 0], [1, -1], [1, 1]])


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("prompts", ["boxes", "points", "both"])
@torch.no_grad()
def test_equals_transformers(tiny_sam_folder: Path, pixels: Tensor, prompts: str, multimask: bool) -> None:
    reference = SamModel.from_pretrained(tiny_sam_folder).eval()
    model = load_base("custom", tiny_sam_folder).model
    boxes = BOXES if prompts != "points" else None
    points, labels = (POINTS, LABELS) if prompts != "boxes" else (None, None)
    expected = reference(
        pixel_values=pixels,
        input_boxes=None if boxes is None else boxes[None],
        input_points=None if points is None else points[None],
        input_labels=None if labels is None else labels[None],
        multimask_output=multimask,
    )
    embeddings = model.encode(pixels)
    masks = model.decode(embeddings, boxes=boxes, points=points, point_labels=labels, multimask=multimask)
    torch.testing.assert_close(embeddings, reference.get_image_embeddings(pixels), atol=1e-5, rtol=0)
    assert masks.logits.shape == (3, 3 if multimask else 1, 16, 16)
    assert masks.logits.std() > 0.1
    torch.testing.assert_close(masks.logits, expected.pred_masks[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(masks.iou, expected.iou_scores[0], atol=1e-5, rtol=1e-4)
