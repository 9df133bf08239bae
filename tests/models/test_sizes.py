"""Every base at sizes that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nuclora.errors import NucloraError
from nuclora.models.checkpoints import build_base, load_base
from nuclora.models.sam import NucleiSam
from nuclora.models.tiny_vit import FrozenNormConv, TinyViT, TinyViTConfig, WindowAttention, biased_attention


def _model(name: str, folder: Path) -> NucleiSam:
    if name == "custom":
        return load_base(name, folder).model
    model = build_base(name).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key.endswith(("running_var", "num_batches_tracked")):
                tensor.fill_(1)
            else:
                tensor.normal_(std=0.05, generator=generator)
    return model


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mobile_sam", 112),
        ("mobile_sam", 256),
        ("lite_medsam", 68),
        ("lite_medsam", 52),
        ("custom", 48),
        ("custom", 160),
    ],
)
@torch.no_grad()
def test_any_size(name: str, size: int, tiny_sam_folder: Path) -> None:
    model = _model(name, tiny_sam_folder)
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    embeddings = model.encode(pixels)
    cells = size // model.stride
    assert embeddings.shape[2:] == (cells, cells)
    assert torch.isfinite(embeddings).all()
    # Images of a batch do not see each other.
    torch.testing.assert_close(model.encode(pixels[1:]), embeddings[1:], atol=1e-5, rtol=1e-4)
    masks = model.decode(embeddings[:1], boxes=torch.tensor([[2.0, 3.0, 20.0, 30.0]]), multimask=True)
    assert masks.logits.shape == (1, 3, 4 * cells, 4 * cells)
    assert torch.isfinite(masks.logits).all()


def test_same_place_at_another_size(tiny_sam_folder: Path) -> None:
    """A prompt's embedding depends on where it is in the image, not on the image's size in pixels."""
    encoder = load_base("custom", tiny_sam_folder).model.prompt_encoder
    box = torch.tensor([[[10.0, 20.0, 30.0, 40.0]]])
    native = encoder(None, None, box, 64)
    # Pixel centres: (x + .5) / size is the same place.
    tripled = encoder(None, None, (box + 0.5) * 3 - 0.5, 192)
    other = encoder(None, None, box, 192)
    torch.testing.assert_close(native, tripled, atol=1e-5, rtol=1e-5)
    assert (native - other).abs().max() > 0.1


def test_prompts_do_not_see_each_other(tiny_sam_folder: Path) -> None:
    model = load_base("custom", tiny_sam_folder).model
    embeddings = model.encode(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    boxes = torch.tensor([[2.0, 3.0, 20.0, 30.0], [30.0, 30.0, 60.0, 50.0], [1.0, 50.0, 9.0, 60.0]])
    together = model.decode(embeddings, boxes=boxes)
    for index in range(3):
        alone = model.decode(embeddings, boxes=boxes[index : index + 1])
        torch.testing.assert_close(together.logits[index], alone.logits[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("multimask", [False, True])
def test_no_prompts(tiny_sam_folder: Path, multimask: bool) -> None:
    model = load_base("custom", tiny_sam_folder).model
    masks = model.decode(torch.zeros(1, 32, 4, 4), boxes=torch.zeros(0, 4), multimask=multimask)
    count = 3 if multimask else 1
    assert masks.logits.shape == (0, count, 16, 16)
    assert masks.iou.shape == (0, count)


@pytest.mark.parametrize("shape", [(1, 3, 64, 48), (1, 3, 72, 72)])
def test_wrong_size(tiny_sam_folder: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(NucloraError, match=r"multiple of 16; the nearest is "):
        load_base("custom", tiny_sam_folder).model.encode(torch.zeros(shape))


def test_points_need_labels(tiny_sam_folder: Path) -> None:
    with pytest.raises(ValueError, match="point_labels"):
        load_base("custom", tiny_sam_folder).model.decode(torch.zeros(1, 32, 4, 4), points=torch.zeros(1, 1, 2))


def test_position_bias_by_definition() -> None:
    """One bias per absolute offset, numbered row by row: the order of the published checkpoints."""
    attention = WindowAttention(8, 2, 3)
    torch.nn.init.normal_(attention.attention_biases)
    bias = attention.position_bias()
    for query in range(9):
        for key in range(9):
            down, right = abs(query // 3 - key // 3), abs(query % 3 - key % 3)
            assert torch.equal(bias[:, query, key], attention.attention_biases[:, 3 * down + right])


def test_batch_norms_never_learn() -> None:
    encoder = TinyViT(TinyViTConfig()).train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    pixels = 5 + torch.randn(2, 3, 64, 64)
    training = encoder(pixels)
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())
    torch.testing.assert_close(training, encoder.eval()(pixels))


def test_a_frozen_norm_is_pytorchs_in_evaluation() -> None:
    module = FrozenNormConv(3, 5, kernel=3, stride=2).train()
    with torch.no_grad():
        for values in (module.norm.weight, module.norm.bias, module.norm.running_mean, module.norm.running_var):
            values.uniform_(0.5, 2)
    pixels = torch.randn(2, 3, 9, 9)
    found = module(pixels)
    torch.testing.assert_close(found, module.norm.eval()(module.conv(pixels)))


@pytest.mark.parametrize("bias_trains", [False, True])
def test_attention_and_its_gradients_are_those_of_pytorchs(bias_trains: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2, 9, 4)] * 3 + [(2, 9, 9)]
    first = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    results = []
    for attend in (biased_attention, lambda q, k, v, b: F.scaled_dot_product_attention(q, k, v, attn_mask=b[None])):
        *qkv, bias = [tensor.clone().requires_grad_() for tensor in first]
        attended = attend(*qkv, bias.requires_grad_(bias_trains))
        attended.square().sum().backward()
        results.append([attended, *(tensor.grad for tensor in [*qkv, bias] if tensor.requires_grad)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@torch.no_grad()
def test_bfloat16_is_close(tiny_sam_folder: Path) -> None:
    model = _model("mobile_sam", tiny_sam_folder)
    pixels = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    exact = model.encode(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.encode(pixels)
        masks = model.decode(half, boxes=torch.tensor([[10.0, 10.0, 60.0, 70.0]]))
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float().flatten(), exact.flatten(), dim=0) > 0.995
    assert torch.isfinite(masks.logits).all()
