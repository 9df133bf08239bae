from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SamModel

from nuclora.errors import NucloraError
from nuclora.models.adapter import AdapterCard, load_adapter, merge, read_card, read_recipe, read_tensors, save_adapter
from nuclora.models.checkpoints import load_base, sha256_of
from nuclora.models.lora import adapt
from nuclora.models.sam import NucleiSam
from nuclora.recipe import AdapterSettings

BOXES = torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 10.0, 60.0, 63.0]])


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def _trained(folder: Path, settings: AdapterSettings) -> PeftModel:
    """An adapter whose every trainable weight has moved."""
    model = adapt(load_base("custom", folder).model, settings, seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def _card(folder: Path) -> AdapterCard:
    return AdapterCard(
        base="custom",
        base_sha256=sha256_of(folder),
        input_size=64,
        normalise="unit",
        recipe={"name": "test", "base": "custom"},
        thresholds={"core": 0.3},
        metrics={"dice": 0.5},
    )


@torch.no_grad()
def _masks(sam: NucleiSam, pixels: Tensor) -> Tensor:
    return sam.decode(sam.encode(pixels), boxes=BOXES).logits


PART_SETS = [
    AdapterSettings(rank=2, targets=("qkv", "proj", "mlp"), train_parts=("mask_decoder", "prompt_encoder", "neck")),
    AdapterSettings(rank=2, targets=("qkv", "decoder_attention"), train_parts=(), last_blocks=1),
]


@pytest.mark.parametrize("settings", PART_SETS)
def test_saved_loaded_and_merged(
    tiny_sam_folder: Path, tmp_path: Path, pixels: Tensor, settings: AdapterSettings
) -> None:
    model = _trained(tiny_sam_folder, settings)
    expected = _masks(model.get_base_model(), pixels)
    base = _masks(load_base("custom", tiny_sam_folder).model, pixels)
    assert (expected - base).abs().max() > 0.1
    save_adapter(model, tmp_path / "run" / "adapter", _card(tiny_sam_folder))
    state = torch.random.get_rng_state()
    loaded = load_adapter(tmp_path / "run" / "adapter", tiny_sam_folder)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert loaded.card == _card(tiny_sam_folder)
    assert not loaded.model.training
    assert torch.equal(_masks(loaded.model.get_base_model(), pixels), expected)
    merged = merge(loaded.model)
    assert not any("lora" in name or "modules_to_save" in name for name in merged.state_dict())
    assert merged.state_dict().keys() == load_base("custom", tiny_sam_folder).model.state_dict().keys()
    torch.testing.assert_close(_masks(merged, pixels), expected, atol=1e-4, rtol=0)


# PEFT still asks transformers by the old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("settings", PART_SETS)
@torch.no_grad()
def test_plain_peft_on_plain_transformers(
    tiny_sam_folder: Path, tmp_path: Path, pixels: Tensor, settings: AdapterSettings
) -> None:
    model = _trained(tiny_sam_folder, settings)
    save_adapter(model, tmp_path / "adapter", _card(tiny_sam_folder))
    plain = PeftModel.from_pretrained(SamModel.from_pretrained(tiny_sam_folder), tmp_path / "adapter").eval()
    masks = plain(pixel_values=pixels, input_boxes=BOXES[None], multimask_output=False).pred_masks[0]
    torch.testing.assert_close(masks, _masks(model.get_base_model(), pixels), atol=1e-4, rtol=1e-4)


def test_tiny_vit_adapter(shared_data: Path, tmp_path: Path) -> None:
    weights = shared_data / "weights" / "mobile_sam.pt"
    base = load_base("mobile_sam", weights)
    model = adapt(base.model, AdapterSettings(rank=2, targets=("qkv", "mlp"), train_parts=("neck",)), seed=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.005)
    card = AdapterCard(
        base="mobile_sam",
        base_sha256=base.sha256,
        input_size=128,
        normalise="unit",
        recipe={"name": "test", "base": "mobile_sam"},
    )
    save_adapter(model, tmp_path / "adapter", card)
    loaded = load_adapter(tmp_path / "adapter", weights)
    pixels = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    expected = _masks(base.model, pixels)
    assert (expected - _masks(load_base("mobile_sam", weights).model, pixels)).abs().max() > 0.1
    assert torch.equal(_masks(loaded.model.get_base_model(), pixels), expected)
    torch.testing.assert_close(_masks(merge(loaded.model), pixels), expected, atol=1e-4, rtol=0)


@pytest.fixture
def adapter(tiny_sam_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    save_adapter(_trained(tiny_sam_folder, PART_SETS[0]), folder, _card(tiny_sam_folder))
    return folder


def test_files(adapter: Path, tiny_sam_folder: Path) -> None:
    assert {file.name for file in adapter.parent.iterdir()} == {"adapter"}
    assert {file.name for file in adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "nuclora.json",
    }
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "custom"
    assert str(tiny_sam_folder.parent) not in (adapter / "adapter_config.json").read_text()
    card = json.loads((adapter / "nuclora.json").read_text())
    assert card["base_sha256"] == sha256_of(tiny_sam_folder)
    assert card["nuclora"]


def test_a_full_disk_is_told(adapter: Path, tiny_sam_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = (adapter / "adapter_model.safetensors").read_bytes()
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(NucloraError, match="free some space"):
        save_adapter(_trained(tiny_sam_folder, PART_SETS[1]), adapter, _card(tiny_sam_folder))
    assert (adapter / "adapter_model.safetensors").read_bytes() == before


def test_replaces_an_older_adapter(adapter: Path, tiny_sam_folder: Path, pixels: Tensor) -> None:
    newer = _trained(tiny_sam_folder, PART_SETS[1])
    save_adapter(newer, adapter, _card(tiny_sam_folder))
    assert {file.name for file in adapter.parent.iterdir()} == {"adapter"}
    loaded = load_adapter(adapter, tiny_sam_folder).model.get_base_model()
    assert torch.equal(_masks(loaded, pixels), _masks(newer.get_base_model(), pixels))


def test_another_base_is_refused(adapter: Path, tiny_sam_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_sam_folder, other)
    tensors = load_file(other / "model.safetensors")
    tensors["mask_decoder.iou_token.weight"] += 1
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(NucloraError) as caught:
        load_adapter(adapter, other)
    assert sha256_of(tiny_sam_folder) in str(caught.value)
    assert sha256_of(other) in str(caught.value)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "nuclora.json"])
@pytest.mark.parametrize("damage", ["absent", "cut"])
def test_damaged(adapter: Path, tiny_sam_folder: Path, file: str, damage: str) -> None:
    if damage == "absent":
        (adapter / file).unlink()
    else:
        (adapter / file).write_bytes((adapter / file).read_bytes()[:40])
    with pytest.raises(NucloraError, match=str(adapter)):
        load_adapter(adapter, tiny_sam_folder)


def test_weights_that_do_not_fit(adapter: Path, tiny_sam_folder: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lora_A" in name)
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    with pytest.raises(NucloraError, match=f"missing {name}"):
        load_adapter(adapter, tiny_sam_folder)
    save_file({**tensors, "extra": torch.zeros(1)}, path)
    with pytest.raises(NucloraError, match="unexpected extra"):
        load_adapter(adapter, tiny_sam_folder)
    save_file({**tensors, name: torch.zeros(3, 5)}, path)
    with pytest.raises(NucloraError, match=r"is \(3, 5\), not"):
        load_adapter(adapter, tiny_sam_folder)


@pytest.mark.parametrize(
    "change",
    [{"target_modules": r"decoder\.nothing"}, {"target_modules": "(("}, {"modules_to_save": [3]}, {"bias": "xx"}],
)
def test_layers_that_the_base_lacks(adapter: Path, tiny_sam_folder: Path, change: dict[str, Any]) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(NucloraError, match="does not fit custom"):
        load_adapter(adapter, tiny_sam_folder)


@pytest.mark.parametrize(
    "change",
    [
        {"base_sha256": "0"},
        {"input_size": 0},
        {"normalise": "best"},
        {"colour": "blue"},
        {"microns_per_pixel": float("inf")},
        {"thresholds": {"foreground": 1.5}},
        {"thresholds": {"foreground": float("nan")}},
        {"thresholds": {"mask": 0.0}},
        {"thresholds": {"min_size": -1}},
        {"thresholds": {"min_size": 2.5}},
        {"calibration": [(0.5, 0.6), (0.1, 0.7)]},
        {"calibration": [(0.1, 0.6), (0.5, 0.2)]},
        {"calibration": [(0.1, float("nan"))]},
        {"calibration": [(0.1, 2.0)]},
    ],
)
def test_faulty_card(adapter: Path, tiny_sam_folder: Path, change: dict[str, object]) -> None:
    path = adapter / "nuclora.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(NucloraError, match=f"not a valid card: {next(iter(change))}[^:]*: (?!Value error)"):
        load_adapter(adapter, tiny_sam_folder)


def test_an_input_that_the_base_cannot_take(adapter: Path, tiny_sam_folder: Path) -> None:
    path = adapter / "nuclora.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "input_size": 50}))
    with pytest.raises(NucloraError, match=r"nuclora\.json: input_size: input of 50 x 50 pixels"):
        load_adapter(adapter, tiny_sam_folder)


@pytest.mark.parametrize("field", ["stain_reference", "recipe"])
def test_a_card_of_another_version_says_which(adapter: Path, field: str) -> None:
    path = adapter / "nuclora.json"
    fields = json.loads(path.read_text()) | {"nuclora": "9.0.0"}
    if field == "recipe":
        fields["recipe"]["lookahead"] = 3
    else:
        fields[field] = [1, 2]
    path.write_text(json.dumps(fields))
    with pytest.raises(NucloraError, match=r"nuclora 9\.0\.0 wrote it, and this is .*: install that version"):
        read_recipe(adapter, read_card(adapter))


def test_what_may_not_be_read_is_not_called_missing(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path.open

    def refuse(path: Path, *arguments: Any, **more: Any) -> Any:
        if path.parent == adapter:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return whole(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", refuse)
    for read in (lambda: read_card(adapter), lambda: read_tensors(adapter / "adapter_model.safetensors")):
        with pytest.raises(
            NucloraError, match=r"cannot be read \(Permission denied\); check the path and its permissions"
        ):
            read()
