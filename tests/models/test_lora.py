from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from nuclora.errors import NucloraError
from nuclora.models.checkpoints import build_base, load_base
from nuclora.models.lora import FoldedLinear, adapt, fold_adapters
from nuclora.models.parameters import count_parameters
from nuclora.models.sam import NucleiSam
from nuclora.recipe import AdapterSettings

# Width of each attention block, by the papers.
WIDTHS = {
    "sam_vit_b": [768] * 12,
    "sam_vit_l": [1024] * 24,
    "sam_vit_h": [1280] * 32,
    "mobile_sam": [128] * 2 + [160] * 6 + [320] * 2,
    "lite_medsam": [128] * 2 + [160] * 6 + [320] * 2,
}
# (inputs + outputs) of the linear layers of a block of width 1: fused q, k, v; projection; perceptron.
LAYERS = {"qkv": 1 + 3, "proj": 1 + 1, "mlp": (1 + 4) + (4 + 1)}
MASK_DECODER, PROMPT_ENCODER = 4_058_340, 6_220


def _trainable(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("base", WIDTHS)
@pytest.mark.parametrize(("targets", "last_blocks"), [(("qkv",), None), (("qkv", "proj", "mlp"), 3), (("proj",), 1)])
def test_counts(base: str, targets: tuple[str, ...], last_blocks: int | None) -> None:
    settings = AdapterSettings(rank=4, targets=targets, last_blocks=last_blocks)
    model = adapt(build_base(base), settings, seed=0)
    widths = WIDTHS[base] if last_blocks is None else WIDTHS[base][-last_blocks:]
    adapters = 4 * sum(width * LAYERS[target] for width in widths for target in targets)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trainable == adapters + MASK_DECODER + PROMPT_ENCODER
    table = count_parameters(model)
    assert (table.trainable, table.rows[1].parameters) == (trainable, adapters)
    assert table.total == table.rows[0].parameters + adapters


def test_the_study() -> None:
    table = count_parameters(adapt(build_base("sam_vit_h"), AdapterSettings(), seed=0))
    assert table.to_json() == {
        "base": 641_090_608,
        "adapter": 2_621_440,
        "mask_decoder": MASK_DECODER,
        "prompt_encoder": PROMPT_ENCODER,
        "total": 643_712_048,
        "trainable": 6_686_000,
        "share": 6_686_000 / 643_712_048,
        "trained": ["adapter", "mask_decoder", "prompt_encoder"],
    }


def test_convolutions_of_the_encoder() -> None:
    settings = AdapterSettings(rank=2, train_parts=("neck", "convolutions"))
    model = adapt(build_base("mobile_sam"), settings, seed=0)
    trained = _trainable(model)
    for name, layer in model.get_base_model().vision_encoder.named_modules():
        if isinstance(layer, nn.Conv2d) and not name.startswith("neck.") and ".original_module." not in name:
            assert f"base_model.model.vision_encoder.{name}.weight" in trained
    assert not any("attn.norm" in name or "mlp.norm" in name for name in trained)
    table = count_parameters(model).to_json()
    # Two stem convolutions with their norms; the first stage; merging between four stages; one in each block.
    bottleneck = 2 * 64 * 256 + 9 * 256 + 2 * (256 + 256 + 64)
    merging = sum(a * b + 9 * b + b * b + 6 * b for a, b in ((64, 128), (128, 160), (160, 320)))
    local = sum(dim * (9 + 2) for dim in WIDTHS["mobile_sam"])
    assert table["convolutions"] == 9 * (3 * 32 + 32 * 64) + 2 * (32 + 64) + 2 * bottleneck + merging + local
    assert table["trained"] == ["adapter", "neck", "convolutions"]
    assert (
        table["base"] == count_parameters(adapt(build_base("mobile_sam"), AdapterSettings(), seed=0)).rows[0].parameters
    )


def test_lora_on_the_mask_decoder() -> None:
    settings = AdapterSettings(rank=2, targets=("decoder_attention",), train_parts=("prompt_encoder", "neck"))
    model = adapt(build_base("mobile_sam"), settings, seed=0)
    # Two layers of a self-attention (256 wide) and two cross-attentions (128 wide inside), then one cross-attention.
    attention, cross = 4 * (256 + 256), 4 * (256 + 128)
    table = count_parameters(model)
    assert table.rows[1].parameters == 2 * (2 * (attention + 2 * cross) + cross)
    # Neck: 1x1 convolution from 320, 3x3 convolution, two norms.
    assert table.to_json()["neck"] == 320 * 256 + 9 * 256 * 256 + 4 * 256
    assert table.to_json()["trained"] == ["adapter", "prompt_encoder", "neck"]


def test_faulty_settings() -> None:
    with pytest.raises(NucloraError, match=r"adapter\.targets is empty"):
        adapt(build_base("mobile_sam"), AdapterSettings(targets=()), seed=0)
    with pytest.raises(NucloraError, match="last_blocks=11, but mobile_sam has 10 blocks"):
        adapt(build_base("mobile_sam"), AdapterSettings(last_blocks=11), seed=0)


def _loss(sam: NucleiSam, pixels: Tensor) -> Tensor:
    embeddings = sam.encode(pixels)
    by_box = sam.decode(embeddings, boxes=torch.tensor([[5.0, 5.0, 30.0, 40.0], [9.0, 9.0, 50.0, 20.0]]))
    points = torch.tensor([[[20.0, 20.0], [60.0, 60.0]]])
    by_point = sam.decode(embeddings, points=points, point_labels=torch.tensor([[1, 0]]), multimask=True)
    return sum(part.square().mean() for part in (*by_box, *by_point))


@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        (("qkv",), ("mask_decoder", "prompt_encoder")),
        (("qkv", "proj", "mlp"), ("mask_decoder", "prompt_encoder", "neck")),
        (("decoder_attention",), ("neck",)),
        (("qkv",), ("mask_decoder", "convolutions")),
    ],
)
def test_what_trains(tiny_sam_folder: Path, targets: Any, parts: Any) -> None:
    base = load_base("custom", tiny_sam_folder).model
    untouched = load_base("custom", tiny_sam_folder).model
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    settings = AdapterSettings(rank=2, dropout=0, targets=targets, train_parts=parts)
    model = adapt(base, settings, seed=0).train()
    sam = model.get_base_model()
    assert sam is base
    with torch.no_grad():
        # A new adapter is none.
        torch.testing.assert_close(_loss(sam, pixels), _loss(untouched, pixels))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(2):  # the first step moves only one of the two low-rank factors
        optimizer.zero_grad()
        _loss(sam, pixels).backward()
        optimizer.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    # Mask prompts are not used, so what embeds them stays.
    assert changed == {name for name in _trainable(model) if ".mask_embed." not in name}
    assert all(".lora_" in name or ".modules_to_save." in name for name in changed)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def test_frozen_layers_cost_no_backward() -> None:
    model = adapt(build_base("mobile_sam").to_empty(device="cpu"), AdapterSettings(last_blocks=2), seed=0)
    sam = model.get_base_model()
    needed = {}
    for name in ("patch_embed", "layers.0", "layers.1", "layers.2", "layers.3"):
        sam.vision_encoder.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: needed.update(
                {name: any(o.requires_grad for o in (output if isinstance(output, tuple) else (output,)))}
            )
        )
    sam.encode(torch.zeros(1, 3, 32, 32))
    assert needed == {"patch_embed": False, "layers.0": False, "layers.1": False, "layers.2": False, "layers.3": True}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("dropout", "bias"), [(0.0, False), (0.3, False), (0.0, True)])
def test_folded_layer_equals_pefts_own(train: bool, dropout: float, bias: bool) -> None:
    config = LoraConfig(r=3, lora_alpha=5, lora_dropout=dropout, lora_bias=bias, target_modules=["0"])
    torch.manual_seed(0)
    plain = get_peft_model(nn.Sequential(nn.Linear(6, 8)), config).train(train)
    folded = get_peft_model(nn.Sequential(nn.Linear(6, 8)), fold_adapters(copy.deepcopy(config))).train(train)
    assert isinstance(folded.get_base_model()[0], FoldedLinear)
    state = {name: torch.randn_like(value) for name, value in plain.state_dict().items()}
    tokens = torch.randn(2, 5, 6)
    results = []
    for model in (plain, folded):
        model.load_state_dict(state)
        inputs = tokens.clone().requires_grad_()
        torch.manual_seed(1)
        output = model(inputs)
        output.square().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        results.append([output.detach(), inputs.grad, *gradients])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with folded.disable_adapter():
        torch.testing.assert_close(folded(tokens), folded.get_base_model()[0].get_base_layer()(tokens))
    merged = folded.merge_and_unload()
    torch.testing.assert_close(merged(tokens), plain.eval()(tokens))


def test_seed_alone_decides() -> None:
    def first_weights(seed: int) -> Tensor:
        model = adapt(build_base("lite_medsam").to_empty(device="cpu"), AdapterSettings(), seed=seed)
        return torch.cat([p.flatten() for name, p in model.named_parameters() if "lora_A" in name]).detach()

    state = torch.random.get_rng_state()
    one = first_weights(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(first_weights(1), one)
    assert not torch.equal(first_weights(2), one)


def test_scaling_and_dropout_are_those_of_the_settings(tiny_sam_folder):
    settings = AdapterSettings(rank=2, alpha=12, dropout=0.25, targets=("qkv",))
    model = adapt(load_base("custom", tiny_sam_folder).model, settings, seed=0)
    layer = model.get_base_model().vision_encoder.layers[0].attn.qkv
    assert layer.scaling["default"] == 6
    assert layer.lora_dropout["default"].p == 0.25
