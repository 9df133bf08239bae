from __future__ import annotations

from pathlib import Path

import pytest

from nuclora.data.synthetic import write_dataset
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
    "evaluate": {"protocols": ["oracle-box", "automatic"], "grid": {"points_per_side": 3}},
}


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    return Recipe.model_validate(TINY)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles") / "synthetic"
    write_dataset(folder, tiles=10, size=64, organs=2, seed=3)
    return folder
