"""Networks against the code that published them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from nuclora.models.checkpoints import LoadedBase, load_base
from nuclora.models.preprocess import prepare


@pytest.fixture(scope="module", params=["mobile_sam", "lite_medsam"])
def base(request: pytest.FixtureRequest, shared_data: Path) -> LoadedBase:
    weights = shared_data / "weights" / "mobile_sam.pt"
    return load_base(request.param, weights if request.param == "mobile_sam" else None)


@pytest.fixture(scope="module")
def reference(base: LoadedBase, shared_data: Path) -> dict[str, Tensor]:
    arrays = np.load(shared_data / "reference" / f"{base.name}.npz", allow_pickle=False)
    return {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in arrays}


@pytest.fixture(scope="module")
def embeddings(base: LoadedBase, reference: dict[str, Tensor]) -> Tensor:
    # Training mode, because it must change nothing: batch norms keep their statistics.
    base.model.train()
    with torch.no_grad():
        return base.model.encode(reference["pixel_values"])


def test_image_embeddings(embeddings: Tensor, reference: dict[str, Tensor]) -> None:
    torch.testing.assert_close(embeddings, reference["image_embeddings"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("prompts", ["box_single", "box_multi", "point_multi"])
def test_masks(base: LoadedBase, embeddings: Tensor, reference: dict[str, Tensor], prompts: str) -> None:
    kind, count = prompts.split("_")
    points = reference["points"][:, None] if kind == "point" else None
    with torch.no_grad():
        masks = base.model.decode(
            embeddings,
            boxes=reference["boxes"] if kind == "box" else None,
            points=points,
            point_labels=None if points is None else torch.ones(points.shape[:2], dtype=torch.int64),
            multimask=count == "multi",
        )
    torch.testing.assert_close(masks.logits, reference[f"{prompts}_logits"], atol=1e-3, rtol=0)
    torch.testing.assert_close(masks.iou, reference[f"{prompts}_iou"], atol=1e-4, rtol=0)


def test_prepare(base: LoadedBase, reference: dict[str, Tensor], shared_data: Path) -> None:
    tile = shared_data / "nuinsseg" / "official-sample" / "human liver" / "tissue images" / "human_liver_01.png"
    image = np.asarray(Image.open(tile).convert("RGB"))
    pixels = prepare(image, base.input_size, base.normalise)
    # The reference was stored in half precision.
    torch.testing.assert_close(pixels[None], reference["pixel_values"], atol=1e-3, rtol=0)


def test_prepare_unit() -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    assert torch.equal(
        prepare(image[:48, :48], 48, "unit"), torch.from_numpy(image[:48, :48] / np.float32(255)).permute(2, 0, 1)
    )
    halved = prepare(image[:, :48], 24, "unit")
    blocks = image[:, :48].reshape(24, 2, 24, 2, 3).mean((1, 3)) / 255
    torch.testing.assert_close(halved, torch.from_numpy(blocks).float().permute(2, 0, 1))


@torch.no_grad()
def test_vit_equals_original_code(original_sam: nn.Module, small_base: Path) -> None:
    model = load_base("small", small_base).model
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    embeddings = model.encode(pixels)
    torch.testing.assert_close(embeddings, original_sam.image_encoder(pixels), atol=1e-5, rtol=1e-5)

    boxes = torch.tensor([[3.0, 5.0, 40.0, 50.0], [10.0, 11.0, 20.0, 30.0]])
    points, labels = torch.tensor([[[9.0, 10.0]], [[33.0, 60.0]]]), torch.tensor([[1], [0]])
    for given in ("boxes", "points", "both"):
        box = boxes if given != "points" else None
        point = (points, labels) if given != "boxes" else None
        sparse, dense = original_sam.prompt_encoder(points=point, boxes=box, masks=None)
        for multimask in (False, True):
            logits, iou = original_sam.mask_decoder(
                image_embeddings=embeddings[:1],
                image_pe=original_sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
            )
            masks = model.decode(
                embeddings[:1],
                boxes=box,
                points=None if point is None else points,
                point_labels=None if point is None else labels,
                multimask=multimask,
            )
            torch.testing.assert_close(masks.logits, logits, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(masks.iou, iou, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_vit_at_another_size(original_sam: nn.Module, small_base: Path) -> None:
    """The original resizes relative positions itself; its absolute ones are resized for it here."""
    model = load_base("small", small_base).model
    pixels = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    encoder = original_sam.image_encoder
    native = encoder.pos_embed
    channels = [
        np.asarray(Image.fromarray(channel).resize((6, 6), Image.Resampling.BICUBIC))
        for channel in native[0].permute(2, 0, 1).numpy()
    ]
    encoder.pos_embed = nn.Parameter(torch.from_numpy(np.stack(channels, -1))[None])
    try:
        expected = encoder(pixels)
    finally:
        encoder.pos_embed = native
    torch.testing.assert_close(model.encode(pixels), expected, atol=1e-5, rtol=1e-5)
