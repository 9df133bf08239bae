"""What a fold's training takes from the machine, and what it must not take from the fold before it."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
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
from nuclora.models.adapter import load_adapter, read_card
from nuclora.models.checkpoints import load_base
from nuclora.recipe import Recipe
from nuclora.run import ZERO_SHOT, Run
from nuclora.training import crossval
from nuclora.training import trainer as module
from nuclora.training.interrupt import Interrupt, Stopped
from nuclora.training.monitor import Monitor
from nuclora.training.plan import learning_rate_factor
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


def _other(run, tmp_path, **changes):
    train = run.recipe.train.model_copy(update=changes)
    return Run.start(
        tmp_path / "other",
        recipe=run.recipe.model_copy(update={"train": train}),
        folds=run.folds,
        base={**run.info["base"], "path": run.info["base_path"]},
        data=run.info["data"],
    )


def test_the_moving_average_is_where_the_weights_are(run, tiles, tiny_sam_folder, monkeypatch):
    monkeypatch.setattr(Accelerator, "prepare", lambda self, loss, optimizer: (loss.to("meta"), optimizer))
    average = _trainer(run, 1, tiles, tiny_sam_folder, _cpu()).average
    assert {value.device.type for value in average.state.values()} == {"meta"}
    average.update(0)


def test_blocks_computed_again_train_the_same(run, tiles, tiny_sam_folder, tmp_path):
    again = _other(run, tmp_path, checkpointing=True)
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


def test_the_base_as_it_came_sees_pixels_scaled_in_its_own_way(recipe, tiles, tiny_sam_folder, tmp_path, monkeypatch):
    seen = []

    def look(model, *, normalise, **more):
        seen.append(normalise)
        raise Stopped

    monkeypatch.setattr(crossval, "Predictor", look)
    changed = recipe.model_copy(update={"input": recipe.input.model_copy(update={"normalise": "unit"})})
    with pytest.raises(Stopped):
        crossval.CrossValidation(
            tiles, changed, tmp_path / "run", make_folds(tiles, 2, recipe.seed), weights=tiny_sam_folder
        ).run(Monitor())
    assert seen == ["imagenet"] == [load_base("custom", tiny_sam_folder).normalise]


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


def test_the_adapter_has_the_averaged_weights_and_the_scale(run, tiles, tiny_sam_folder):
    scaled = TileSet(tiles.root, tiles.format, tuple(replace(tile, microns_per_pixel=0.25) for tile in tiles))
    trainer = _trainer(run, 1, scaled, tiny_sam_folder, _cpu())
    assert not set(trainer.fit_tiles.names) & set(run.folds.test(1))
    trainer.train()
    saved = dict(load_adapter(run.adapter_folder(1), tiny_sam_folder).model.named_parameters())
    last = dict(trainer.model.named_parameters())
    assert all(torch.equal(saved[name], value) for name, value in trainer.average.state.items())
    assert not all(torch.equal(last[name], value) for name, value in trainer.average.state.items())
    assert read_card(run.adapter_folder(1)).microns_per_pixel == 0.25


def test_steps_have_their_rate_clipped_gradients_and_their_epoch(run, tiles, tiny_sam_folder, tmp_path, monkeypatch):
    other = _other(run, tmp_path, epochs=2, schedule="cosine", warmup_steps=1, clip_norm=1e-3)
    epochs, made = [], module.TrainingSamples
    monkeypatch.setattr(
        module, "TrainingSamples", lambda *a, epoch, **k: epochs.append(epoch) or made(*a, epoch=epoch, **k)
    )
    trainer, seen = _trainer(other, 1, tiles, tiny_sam_folder, _cpu()), []

    def look(optimizer, *_):
        (group,) = optimizer.param_groups
        norm = torch.stack([p.grad.norm() for p in group["params"] if p.grad is not None]).norm()
        seen.append((group["lr"], float(norm)))

    trainer.optimizer.optimizer.register_step_pre_hook(look)
    trainer.train()
    train = other.recipe.train
    assert epochs == [0, 1]
    assert [rate for rate, _ in seen] == pytest.approx(
        [train.learning_rate * learning_rate_factor(train, step, 4) for step in range(4)]
    )
    assert max(norm for _, norm in seen) <= 1e-3 * 1.01


@pytest.mark.parametrize("is_cut", [False, True])
def test_the_best_step_is_kept_and_not_the_last(run, tiles, tiny_sam_folder, tmp_path, monkeypatch, is_cut):
    other = _other(run, tmp_path, epochs=2, validations_per_epoch=1, select="best", validate_on="inner")
    scores, weights, cuts = iter((0.5, 0.2)), [], [False, is_cut]

    def score(predictor, *_):
        if len(weights) == 1 and cuts.pop():
            raise Stopped
        weights.append({name: value.clone() for name, value in trainer.model.named_parameters() if value.requires_grad})
        return dict.fromkeys(("dice", "aji", "pq"), next(scores))

    monkeypatch.setattr(module, "score_validation", score)
    trainer = _trainer(other, 1, tiles, tiny_sam_folder, _cpu())
    if is_cut:
        with pytest.raises(Stopped):
            trainer.train()
        trainer = _trainer(other, 1, tiles, tiny_sam_folder, _cpu())
    trainer.train()
    saved = dict(load_adapter(other.adapter_folder(1), tiny_sam_folder).model.named_parameters())
    assert read_card(other.adapter_folder(1)).metrics["validation_pq"] == 0.5
    assert all(torch.equal(saved[name], value) for name, value in weights[0].items())
    assert not all(torch.equal(saved[name], value) for name, value in weights[1].items())
    # What is validated is the average.
    assert all(torch.equal(weights[1][name], value) for name, value in trainer.average.state.items())
