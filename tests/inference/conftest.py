from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from nuclora.data import open_tiles
from nuclora.data.tiles import TileSet
from nuclora.inference.predictor import Predictor


class FakePrediction(NamedTuple):
    logits: Tensor
    iou: Tensor


class FakeSam(nn.Module):
    """Draws what it is asked for: a box gives the box, a point a disc of 6 input pixels around it.

    Of the three masks of a point the first is the whole image and has the highest predicted IoU, the third is the disc.
    `prompts` keeps what came, in pixels of the input; `encoded` counts images.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.encoded = 0
        self.prompts: list[Tensor] = []

    def encode(self, pixel_values: Tensor) -> Tensor:
        self.encoded += 1
        return pixel_values

    def decode(
        self,
        image_embeddings: Tensor,
        *,
        boxes: Tensor | None = None,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        multimask: bool = False,
    ) -> FakePrediction:
        y, x = torch.arange(self.size)[:, None], torch.arange(self.size)[None, :]
        if boxes is not None:
            self.prompts.append(boxes)
            x0, y0, x1, y1 = (boxes[:, i, None, None] for i in range(4))
            # Signed distance to the edges of the outermost pixels.
            logits = torch.stack(torch.broadcast_tensors(x - x0, x1 - x, y - y0, y1 - y)).amin(dim=0) + 0.5
        else:
            assert points is not None
            assert point_labels is not None
            assert point_labels.tolist() == [[1]] * len(points)
            self.prompts.append(points[:, 0])
            logits = 10 * (6 - torch.hypot(x - points[:, 0, 0, None, None], y - points[:, 0, 1, None, None]))
        logits, iou = logits[:, None], torch.full((len(logits), 1), 0.9)
        if multimask:
            whole, nothing = torch.full_like(logits, 5.0), torch.full_like(logits, -5.0)
            logits = torch.cat([whole, nothing, logits], dim=1)
            iou = torch.cat([iou + 0.05, iou - 0.5, iou], dim=1)
        return FakePrediction(logits, iou)


@pytest.fixture
def make_fake() -> Callable[..., Predictor]:
    """Makes a predictor around a fake model that sees the image at its input size."""

    def make(size: int = 64, **settings: object) -> Predictor:
        return Predictor(FakeSam(size), input_size=size, normalise="unit", **settings)  # type: ignore[arg-type]

    return make


@pytest.fixture
def labelled_tiles(tmp_path: Path) -> TileSet:
    """Six 64 x 64 tiles in three groups, with squares and discs; one tile is empty."""
    generator = np.random.default_rng(5)
    for index, group in enumerate(["brain", "brain", "liver", "liver", "liver", "lung"]):
        labels = np.zeros((64, 64), dtype=np.uint16)
        if index != 3:
            labels[5:15, 5:20], labels[30:50, 40:52] = 1, 4
            y, x = np.ogrid[:64, :64]
            labels[np.hypot(y - 45, x - 15 - index) < 7] = 9
        image = generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        for folder, pixels in (("images", image), ("labels", labels)):
            path = tmp_path / "data" / folder / group / f"tile_{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return open_tiles(tmp_path / "data")
