"""Two processes, or a batch in parts, train what one process trains."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from nuclora.data import open_tiles
from nuclora.data.folds import make_folds
from nuclora.errors import NucloraError
from nuclora.recipe import Recipe
from nuclora.run import Run
from nuclora.training.crossval import cross_validate

DRIVER = """
import json, os, sys
from pathlib import Path

data, recipe, out, weights = sys.argv[1:]
main = os.environ["RANK"] == "0"
WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}

def watch(event, arguments):
    writes = event in WRITES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
    if writes and str(arguments[0]).startswith(out):
        print("WROTE", event, arguments[0], flush=True)
        os._exit(3)

if not main:
    sys.addaudithook(watch)

from nuclora.cli.runs import cross_validate_and_print
from nuclora.data import open_tiles
from nuclora.data.folds import make_folds
from nuclora.recipe import Recipe
from nuclora.training.crossval import CrossValidation

tiles = open_tiles(Path(data))
recipe = Recipe.model_validate_json(recipe)
run = cross_validate_and_print(
    CrossValidation(tiles, recipe, Path(out), make_folds(tiles, 2, recipe.seed), folds=[1], weights=Path(weights))
)
assert (run is not None) == main
"""


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe) -> Recipe:
    """No dropout: its noise differs between processes."""
    fields = tiny_recipe.model_dump()
    fields["adapter"]["dropout"] = 0.0
    fields["train"]["batch_size"] = 4
    fields["train"]["epochs"] = 4
    # In chunks, so that the decoder is computed again in the backward pass.
    fields["prompts"]["chunk"] = 4
    fields["evaluate"]["protocols"] = ("oracle-box",)
    return Recipe.model_validate(fields)


def _train(data: Path, recipe: Recipe, out: Path, weights: Path) -> Run:
    tiles = open_tiles(data)
    return cross_validate(
        tiles, recipe, out, fold_table=make_folds(tiles, 2, recipe.seed), folds=[1], weights=weights, zero_shot=False
    )


@pytest.fixture(scope="module")
def alone(tiny_data, recipe, tiny_sam_folder, tmp_path_factory) -> Run:
    return _train(tiny_data, recipe, tmp_path_factory.mktemp("alone") / "run", tiny_sam_folder)


def _assert_same_training(run: Run, other: Run) -> None:
    """The loss of each step within 1e-4, and weights that four steps of Adam, each up to 1e-3, moved alike."""
    losses = [[r["loss"] for r in each.training_records(1) if r["kind"] == "step"] for each in (run, other)]
    assert len(losses[0]) == 4
    assert losses[0][-1] != losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    left, right = (
        safetensors.torch.load_file(each.adapter_folder(1) / "adapter_model.safetensors") for each in (run, other)
    )
    assert left.keys() == right.keys()
    for name, value in left.items():
        # Softmax does not see a shift of all keys, so these gradients are rounding alone, which Adam makes steps of.
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(right[name], value, rtol=1e-3, atol=5e-5, msg=lambda t, name=name: f"{name} {t}")


def _launch(processes: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *launcher, *map(str, arguments)]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=300)


def test_two_processes_train_what_one_does_and_one_of_them_writes(alone, tiny_data, recipe, tiny_sam_folder, tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER)
    out = tmp_path / "run"
    # In two parts on each of them, so that they meet only at the last.
    split = recipe.model_copy(update={"train": recipe.train.model_copy(update={"accumulation": 2})})
    done = _launch(2, tmp_path / "driver.py", tiny_data, split.model_dump_json(), out, tiny_sam_folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WROTE" not in done.stdout
    # One table: the helper process prints nothing.
    assert done.stdout.count("mean of the folds") == 1
    together = Run(out)
    _assert_same_training(alone, together)
    assert len(together.info["sessions"]) == 1
    assert {row["tile"] for row in together.fine_tuned(1, "oracle-box").rows} == set(together.folds.test(1))
    assert len(together.zero_shot("oracle-box").rows) == len(together.folds.test(1))


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_trains_what_a_whole_one_does(parts, alone, tiny_data, recipe, tiny_sam_folder, tmp_path):
    split = recipe.model_copy(update={"train": recipe.train.model_copy(update={"accumulation": parts})})
    _assert_same_training(alone, _train(tiny_data, split, tmp_path / "run", tiny_sam_folder))


def test_one_process_can_train_in_several_precisions(alone, tiny_data, recipe, tiny_sam_folder, tmp_path):
    half = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": "bf16"})})
    run = _train(tiny_data, half, tmp_path / "half", tiny_sam_folder)
    losses = [[r["loss"] for r in each.training_records(1) if r["kind"] == "step"] for each in (alone, run)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    _assert_same_training(alone, _train(tiny_data, recipe, tmp_path / "whole", tiny_sam_folder))


def test_a_batch_that_cannot_be_split_says_what_to_set(tiny_data, recipe, tiny_sam_folder, tmp_path):
    split = recipe.model_copy(update={"train": recipe.train.model_copy(update={"accumulation": 3})})
    with pytest.raises(NucloraError, match=r"4 tiles cannot be split over 1 processes x 3 .*--set train\.batch_size=6"):
        _train(tiny_data, split, tmp_path / "run", tiny_sam_folder)
