"""What a fold's training takes from the machine, and what it must not take from the fold before it."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from nuclora.data import open_tiles
from nuclora.data.folds import ALL_TILES, make_folds
from nuclora.data.tiles import TileSet
from nuclora.errors import NucloraError
from nuclora.metrics import METRICS
from nuclora.models.checkpoints import load_base
from nuclora.recipe import Recipe
from nuclora.run import ZERO_SHOT, Run
from nuclora.training import crossval
from nuclora.training.interrupt import Interrupt
from nuclora.training.monitor import Monitor
from nuclora.training.trainer import FoldTrainer


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    changes = {"epochs": 1, "validations_per_epoch": 0, "ema": 0.9}
    return tiny_recipe.model_copy(update={"train": tiny_recipe.train.model_copy(update=changes)})


@pytest.fixture
def tiles(tiny_data: Path) -> TileSet:
    return open_tiles(tiny_data)


@pytest.fixture
def run(recipe, tiles, tiny_sam_folder, tmp_path) -> Run:
    base = {"name": "custom", "sha256": "ab" * 32, "path": str(tiny_sam_folder)}
    data = {"root": str(tiles.root), "format": tiles.format}
    return Run.start(tmp_path / "run", recipe=recipe, folds=make_folds(tiles, 2, recipe.seed), base=base, data=data)


def _trainer(run: Run, fold: int, tiles: TileSet, weights: Path, accelerator: Accelerator, monitor=None) -> FoldTrainer:
    base = load_base("custom", weights)
    return FoldTrainer(
        run, fold, tiles, base, accelerator=accelerator, monitor=monitor or Monitor(), interrupt=Interrupt()
    )


def _cpu() -> Accelerator:
    AcceleratorState._reset_state()
    return Accelerator(cpu=True)


def test_the_moving_average_is_where_the_weights_are(run, tiles, tiny_sam_folder, monkeypatch):
    monkeypatch.setattr(Accelerator, "prepare", lambda self, loss, optimizer: (loss.to("meta"), optimizer))
    average = _trainer(run, 1, tiles, tiny_sam_folder, _cpu()).average
    assert {value.device.type for value in average.state.values()} == {"meta"}
    average.update(0)


def test_blocks_computed_again_train_the_same(run, tiles, tiny_sam_folder, tmp_path):
    train = run.recipe.train.model_copy(update={"checkpointing": True})
    again = Run.start(
        tmp_path / "again",
        recipe=run.recipe.model_copy(update={"train": train}),
        folds=run.folds,
        base={**run.info["base"], "path": run.info["base_path"]},
        data=run.info["data"],
    )
    encoders = []
    for each in (run, again):
        trainer = _trainer(each, 1, tiles, tiny_sam_folder, _cpu())
        trainer.train()
        encoders.append(trainer.base.model.vision_encoder)
    assert [encoder.checkpointing for encoder in encoders] == [False, True]
    weights = [each.adapter_folder(1) / "adapter_model.safetensors" for each in (run, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_each_fold_begins_with_the_same_loss_scale(run, tiles, tiny_sam_folder):
    # As under fp16 on a GPU, where one process trains fold after fold and another may train the second alone.
    accelerator = _cpu()
    accelerator.scaler = torch.amp.GradScaler("cpu")
    scales = []

    class Listens(Monitor):
        def training(self, fold, steps, done):
            scales.append(accelerator.scaler.get_scale())
            accelerator.scaler.set_growth_interval(1)

    for fold in (1, 2):
        _trainer(run, fold, tiles, tiny_sam_folder, accelerator, Listens()).train()
    assert scales[0] != accelerator.scaler.get_scale()
    assert scales[1] == scales[0]


def test_the_base_that_was_evaluated_takes_no_memory_from_the_training(
    recipe, tiles, tiny_sam_folder, tmp_path, monkeypatch
):
    loaded, there = [], []

    def load(*arguments):
        base = load_base(*arguments)
        loaded.append(weakref.ref(base.model))
        return base

    class Listens(Monitor):
        def training(self, fold, steps, done):
            gc.collect()
            there.append([reference() is not None for reference in loaded])

    monkeypatch.setattr(crossval, "load_base", load)
    evaluation = recipe.evaluate.model_copy(update={"protocols": ("oracle-box",)})
    work = crossval.CrossValidation(
        tiles,
        recipe.model_copy(update={"evaluate": evaluation}),
        tmp_path / "run",
        make_folds(tiles, 2, recipe.seed),
        weights=tiny_sam_folder,
        evaluate=False,
    )
    work.run(Listens())
    # The base as it came, and a fresh one for each fold.
    assert there == [[False, True], [False, False, True]]


def test_a_fold_that_is_named_twice_is_one(recipe, tiles, tmp_path):
    folds = make_folds(tiles, 2, recipe.seed)
    work = crossval.CrossValidation(tiles, recipe, tmp_path / "run", folds, [2, 1, 2])
    assert work.choose_folds() == (2, 1)


def test_all_tiles_have_nothing_to_test_the_base_on(recipe, tiles, tiny_sam_folder, tmp_path):
    folds = make_folds(tiles, 2, recipe.seed)
    run = crossval.CrossValidation(tiles, recipe, tmp_path / "run", folds, [ALL_TILES], tiny_sam_folder).run()
    assert run.adapter_folder(ALL_TILES).is_dir()
    assert not run.rows(ZERO_SHOT, "oracle-box")


def test_a_second_fold_of_inner_tiles_is_refused_before_it_is_trained(recipe, tiles, tiny_sam_folder, tmp_path):
    inner = recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update={"validate_on": "inner"}),
            "evaluate": recipe.evaluate.model_copy(update={"tiles": "inner", "protocols": ("oracle-box",)}),
        }
    )
    folds = make_folds(tiles, 2, recipe.seed)

    def work(fold: int, name: str) -> crossval.CrossValidation:
        return crossval.CrossValidation(tiles, inner, tmp_path / name, folds, [fold], tiny_sam_folder, zero_shot=False)

    base = work(1, "trained").load_base()
    work(1, "trained").start(base).adapter_folder(1).mkdir(parents=True)
    scored = work(1, "scored").start(base)
    counts = dict.fromkeys(("nuclei_true", "nuclei_predicted", "missed", "false", "merged", "split"), 3)
    score = {"tile": tiles.names[0], "group": "a", "fold": 1, **counts, **dict.fromkeys(METRICS, 0.5)}
    scored.zero_shot("oracle-box").add(score, np.zeros((3, 4), np.int32))
    for name in ("trained", "scored"):
        work(1, name).start(base)
        with pytest.raises(NucloraError, match=rf"{name}: .* holds fold 1; use another -o for fold 2"):
            work(2, name).run()
        assert not (tmp_path / name / "fold-2").exists()
