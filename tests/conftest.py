from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Before anything imports torch, and for the processes that tests start: networks this small gain nothing from a
# second thread, and processes that fight for the cores slow each other many times over.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from nuclora.recipe import Recipe


TINY = {
    "name": "tiny",
    "base": "custom",
    "seed": 7,
    "input": {"size": 64, "normalise": "unit"},
    "adapter": {"rank": 2, "alpha": 4, "dropout": 0.1, "targets": ["qkv"], "train_parts": ["mask_decoder"]},
    "prompts": {"per_tile": 6},
    "train": {
        "epochs": 2,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "workers": 0,
        "validations_per_epoch": 1,
        "validation_tiles": 2,
        "checkpoint_steps": 2,
    },
    "evaluate": {
        "protocols": ["oracle-box", "automatic"],
        "min_size": 1,
        # So low that something is found in masks of next to random weights.
        "grid": {"points_per_side": 3, "iou_threshold": 0, "stability_threshold": 0, "largest_share": 1},
    },
}


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs `nuclora` and gives exit code, standard output and standard error."""
    from nuclora.cli.main import run

    before = signal.getsignal(signal.SIGINT)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nuclora", *map(str, arguments)])
        try:
            run()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    yield call
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real tiles, weights and reference outputs that the tests compare with."""
    named = os.environ.get("NUCLORA_TEST_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}: set NUCLORA_TEST_DATA to the folder that has it")
    return folder


@pytest.fixture(scope="session")
def tiny_sam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SAM with random weights, as `transformers` saves it: load_base("custom", folder) reads it."""
    import torch
    from transformers import SamConfig, SamModel

    config = SamConfig(
        vision_config={
            "hidden_size": 32,
            "output_channels": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "window_size": 2,
            "global_attn_indexes": [1],
            "num_pos_feats": 16,
            "mlp_dim": 64,
            "initializer_range": 0.02,
        },
        prompt_encoder_config={
            "hidden_size": 32,
            "image_size": 64,
            "patch_size": 16,
            "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 32,
            "layer_norm_eps": 1e-5,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SamModel(config)
        # transformers starts with masks of nearly zero, and positions of zero, which would hide faults.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
    folder = tmp_path_factory.mktemp("tiny-sam")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """A recipe for the tiny SAM: everything on, a second a fold."""
    from nuclora.recipe import Recipe

    return Recipe.model_validate(TINY)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten synthetic tiles of two organs, 64 pixels wide."""
    from nuclora.data.synthetic import write_dataset

    folder = tmp_path_factory.mktemp("tiles") / "synthetic"
    write_dataset(folder, tiles=10, size=64, organs=2, seed=3)
    return folder
