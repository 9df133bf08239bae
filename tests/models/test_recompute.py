"""What an encoder keeps for the backward pass: nothing below the first adapter, and blocks' inputs where asked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nuclora.models.checkpoints import build_base, load_base
from nuclora.models.lora import adapt, encoder_blocks
from nuclora.models.sam import NucleiSam
from nuclora.recipe import AdapterSettings


def _random(name: str) -> NucleiSam:
    model = build_base(name).to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for key, value in model.state_dict().items():
            if value.ndim > 1:
                value.normal_(std=value[0].numel() ** -0.5)
            else:
                value.fill_(float(key.endswith(("weight", "running_var"))))
    return model


@pytest.mark.parametrize("name", ["mobile_sam", "sam_vit_b"])
def test_no_graph_below_the_first_adapted_block(name):
    model = _random(name)
    blocks = encoder_blocks(model)
    sam = adapt(model, AdapterSettings(last_blocks=2), seed=0).get_base_model()
    seen: dict[str, bool] = {}
    kept: list[Tensor] = []
    for block in blocks:
        sam.get_submodule(block).register_forward_hook(
            lambda module, inputs, output, block=block: seen.update({block: output.requires_grad})
        )
    kept_below: list[int] = []
    sam.get_submodule(blocks[-2]).register_forward_pre_hook(lambda module, inputs: kept_below.append(len(kept)))

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        embeddings = sam.encode(torch.rand(1, 3, 64, 64))
    assert seen == {block: block in blocks[-2:] for block in blocks}
    assert kept_below == [0]
    assert kept
    embeddings.square().mean().backward()
    trained = {n for n, p in sam.vision_encoder.named_parameters() if p.grad is not None}
    assert trained
    assert all(any(f"vision_encoder.{n}".startswith(f"{block}.") for block in blocks[-2:]) for n in trained)


def _step(model: NucleiSam, pixels: Tensor) -> tuple[float, dict[str, Tensor], int]:
    """Loss, gradients, and bytes kept for the backward pass beside the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train().zero_grad()
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model.encode(pixels).square().mean()
    held = sum(kept.values())
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, held


@pytest.mark.parametrize("name", ["mobile_sam", "custom"])
@pytest.mark.parametrize("parts", [(), ("vision_encoder",)])
def test_blocks_computed_again_give_equal_gradients_from_less_memory(name, parts, tiny_sam_folder):
    whole = bool(parts)
    settings = AdapterSettings(
        rank=2, targets=("decoder_attention",) if whole else ("qkv",), train_parts=parts, dropout=0.1
    )
    pixels = torch.rand(1, 3, 64, 64)
    steps = []
    for checkpointing in (False, True):
        model = load_base(name, tiny_sam_folder).model if name == "custom" else _random(name)
        if checkpointing:
            model.vision_encoder.checkpoint_blocks()
        sam = adapt(model, settings, seed=0).get_base_model()
        for n, parameter in sam.named_parameters():
            if "lora_B" in n:
                # Zero at first, where it would hide the other half's gradients and dropout.
                torch.nn.init.constant_(parameter, 0.01)
        steps.append(_step(sam, pixels))
    (loss, gradients, held), (same, again, less) = steps
    assert same == loss
    assert gradients.keys() == again.keys()
    for n, gradient in gradients.items():
        torch.testing.assert_close(again[n], gradient, rtol=1e-5, atol=1e-9)
    # The tiny net has two blocks, each with little inside.
    assert less < (0.8 if name == "custom" else 0.5) * held
