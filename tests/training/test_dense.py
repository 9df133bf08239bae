"""Training of the dense decoder, end to end with the tiny SAM."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from nuclora.data import open_tiles
from nuclora.data.folds import make_folds
from nuclora.data.targets import dense_targets
from nuclora.errors import NucloraError
from nuclora.inference.loading import load_model
from nuclora.models.adapter import DENSE_WEIGHTS, load_adapter
from nuclora.models.checkpoints import load_base
from nuclora.models.dense_decoder import OFFSET_UNIT, activate
from nuclora.models.lora import adapt
from nuclora.recipe import DenseSettings, Recipe
from nuclora.report.html import write_report
from nuclora.report.summary import write_summary
from nuclora.training.average import MovingAverage
from nuclora.training.crossval import cross_validate
from nuclora.training.dense_loss import dense_loss
from nuclora.training.interrupt import Stopped
from nuclora.training.monitor import Monitor
from nuclora.training.optimizer import make_optimizer
from nuclora.training.plan import learning_rate_factor


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe) -> Recipe:
    fields = tiny_recipe.model_dump()
    fields["augment"] |= {"crop": 32, "zoom": 1.2}
    fields["adapter"] |= {"dropout": 0.0, "train_parts": ("mask_decoder", "neck")}
    fields["dense"] = {"window": 64, "channels": 8, "fine_channels": 8}
    fields["train"] |= {"validate_on": "inner", "schedule": "cosine", "warmup_steps": 1, "ema": 0.9, "clip_norm": 1.0}
    # So low that something is found in the maps of next to random weights.
    decode = {"views": 2, "core": 0.01, "foreground": 0.4}
    fields["evaluate"] = {"protocols": ("automatic", "oracle-box"), "decode": decode, "min_size": 1}
    return Recipe.model_validate(fields)


@pytest.fixture(scope="module")
def run(recipe, tiny_data, tiny_sam_folder, tmp_path_factory):
    tiles = open_tiles(tiny_data)
    out = tmp_path_factory.mktemp("dense") / "run"
    table = make_folds(tiles, 2, 0)
    return cross_validate(tiles, recipe, out, fold_table=table, folds=[1], weights=tiny_sam_folder, zero_shot=False)


def test_fold_is_trained_and_evaluated_without_prompts(run):
    rows = run.fine_tuned(1, "automatic").rows
    assert {row["tile"] for row in rows} == set(run.folds.test(1))
    assert sum(row["nuclei_predicted"] for row in rows) > 0
    kinds = [record["kind"] for record in run.training_records(1)]
    assert kinds.count("validation") == 2
    assert {r["protocol"] for r in run.training_records(1) if r["kind"] == "validation"} == {"automatic"}


def test_adapter_holds_the_dense_decoder_and_loads_again(run, tiny_data, tiny_sam_folder, recipe):
    folder = run.adapter_folder(1)
    assert (folder / DENSE_WEIGHTS).is_file()
    predictor = load_model(folder, weights=tiny_sam_folder)
    image = next(iter(open_tiles(tiny_data))).read().image
    assert predictor.maps(image, 1).values.shape == (5, 32, 32)
    again = load_model(folder, weights=tiny_sam_folder)
    np.testing.assert_array_equal(again.maps(image, 2).values, predictor.maps(image, 2).values)


def test_adapter_without_its_dense_decoder_is_refused(run, tiny_sam_folder, tmp_path):
    import shutil

    folder = tmp_path / "adapter"
    shutil.copytree(run.adapter_folder(1), folder)
    (folder / DENSE_WEIGHTS).unlink()
    with pytest.raises(NucloraError, match="missing from the adapter"):
        load_adapter(folder, tiny_sam_folder)


def test_interrupted_training_ends_as_an_unbroken_one(run, recipe, tiny_data, tiny_sam_folder, tmp_path):
    class StopAfter(Monitor):
        def record(self, fold, record):
            if record["kind"] == "step" and record["step"] == 2:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGINT)

    tiles = open_tiles(tiny_data)
    arguments = {"fold_table": run.folds, "folds": [1], "weights": tiny_sam_folder, "zero_shot": False}
    with pytest.raises(Stopped):
        cross_validate(tiles, recipe, tmp_path / "run", **arguments, monitor=StopAfter())
    resumed = cross_validate(tiles, recipe, tmp_path / "run", **arguments)
    for name in (DENSE_WEIGHTS, "adapter_model.safetensors"):
        ours, theirs = (r.adapter_folder(1) / name for r in (resumed, run))
        assert ours.read_bytes() == theirs.read_bytes()


def test_base_is_compared_by_prompts_alone(recipe, tiny_data, tiny_sam_folder, run, tmp_path):
    tiles = open_tiles(tiny_data)
    short = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 1})})
    both = cross_validate(tiles, short, tmp_path / "run", fold_table=run.folds, folds=[2], weights=tiny_sam_folder)
    assert len(both.rows("zero-shot", "oracle-box")) == len(run.folds.test(2))
    assert both.rows("zero-shot", "automatic") == []
    assert len(both.fine_tuned(2, "automatic").rows) == len(run.folds.test(2))
    results = {(entry["stage"], entry["protocol"]) for entry in write_summary(both)["results"]}
    assert results == {("zero-shot", "oracle-box"), ("fine-tuned", "oracle-box"), ("fine-tuned", "automatic")}
    assert write_report(both).is_file()


def test_loss_is_least_at_the_truth_and_blind_where_nothing_is_known(tiny_data):
    labels = next(iter(open_tiles(tiny_data))).read().labels
    maps = torch.from_numpy(dense_targets(labels))[None]
    perfect = torch.cat([torch.logit(maps[:, :2], 1e-6), maps[:, 2:3], maps[:, 3:] / OFFSET_UNIT], dim=1)
    weights = torch.ones(1, *maps.shape[2:])
    settings = DenseSettings()
    best = dense_loss(perfect, maps, weights, settings)
    noise = torch.randn(perfect.shape, generator=torch.Generator().manual_seed(0))
    assert dense_loss(perfect + noise, maps, weights, settings) > best + 0.3
    hidden = weights.clone()
    hidden[:, :16] = 0
    spoiled = perfect.clone()
    spoiled[:, :, :16] += 5
    assert dense_loss(spoiled, maps, hidden, settings) == dense_loss(perfect, maps, hidden, settings)
    np.testing.assert_allclose(activate(perfect).numpy(), maps.numpy(), atol=1e-4)
    assert dense_loss(perfect, maps, 0 * weights, settings).isfinite()


@pytest.mark.parametrize("part", ["foreground", "contact", "distance", "offset"])
def test_each_weight_of_the_loss_counts(part, tiny_data):
    maps = torch.from_numpy(dense_targets(next(iter(open_tiles(tiny_data))).read().labels))[None]
    raw, weights = torch.zeros_like(maps), torch.ones(1, *maps.shape[2:])
    plain = dense_loss(raw, maps, weights, DenseSettings())
    doubled = DenseSettings.model_validate({part: 2 * getattr(DenseSettings(), part)})
    assert dense_loss(raw, maps, weights, doubled) > plain


def test_moving_average_forgets_the_first_steps_and_leaves_the_model_alone():
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(100.0)
    average = MovingAverage(model, 0.5)
    for step in range(40):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update(step)
    # Weights 1/2, 1/4, ... of 39, 38, ...
    assert average.state["weight"].item() == pytest.approx(38.0, abs=1e-2)
    with average.in_place():
        assert model.weight.item() == pytest.approx(38.0, abs=1e-2)
    assert model.weight.item() == 39.0


def test_schedule_rises_then_falls_to_zero():
    train = Recipe.model_validate(
        {"name": "x", "base": "custom", "train": {"schedule": "cosine", "warmup_steps": 4}}
    ).train
    factors = [learning_rate_factor(train, step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.2, rel=1e-2)
    assert np.argmax(factors) == 4
    assert all(np.diff(factors[4:]) < 0)
    assert factors[-1] < 1e-3


def test_dense_and_crop_go_together():
    for fields in ({"dense": {}}, {"augment": {"crop": 64}}):
        with pytest.raises(ValueError, match="go together"):
            Recipe.model_validate({"name": "x", "base": "custom", **fields})


def test_card_is_json(run):
    assert json.loads((run.adapter_folder(1) / "nuclora.json").read_text())["recipe"]["dense"]["window"] == 64


def test_dense_loss_is_the_formula_written_out():
    rng = np.random.default_rng(0)
    raw = rng.normal(0, 2, (2, 5, 6, 7))
    maps = rng.random((2, 5, 6, 7))
    maps[:, 1] = maps[:, 1] > 0.7
    maps[:, 3:] = 40 * (maps[:, 3:] - 0.5)
    weights = 3 * rng.random((2, 6, 7)) * (rng.random((2, 6, 7)) < 0.8)
    sure = 1 / (1 + np.exp(-raw))

    def mean(values, by):
        return (values * by).sum() / by.sum()

    def entropy(plane, positives):
        p, t = sure[:, plane], maps[:, plane]
        return mean(-(positives * t * np.log(p) + (1 - t) * np.log(1 - p)), weights)

    def dice(plane):
        p, t = sure[:, plane] * (weights > 0), maps[:, plane] * (weights > 0)
        return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)

    off = np.abs(raw[:, 3:] - maps[:, 3:] / 16)
    smooth = np.where(off < 0.2, off**2 / 0.4, off - 0.1).sum(1)
    settings = DenseSettings(foreground=1.1, contact=0.7, distance=0.6, offset=1.3)
    expected = (
        1.1 * (entropy(0, 1) + dice(0))
        + 0.7 * (entropy(1, 2) + 0.5 * dice(1))
        + 0.6 * mean(np.abs(raw[:, 2] - maps[:, 2]), weights)
        + 1.3 * mean(smooth, weights * maps[:, 0])
    )
    found = dense_loss(*(torch.from_numpy(part) for part in (raw, maps, weights)), settings)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_the_dense_decoder_has_rates_of_its_own(tiny_recipe, tiny_sam_folder):
    fields = tiny_recipe.model_dump()
    fields["augment"] |= {"crop": 32}
    fields["dense"] = {"window": 64, "channels": 8, "fine_channels": 8, "learning_rate": 3e-3, "weight_decay": 0.2}
    fields["train"] |= {"learning_rate": 1e-4, "weight_decay": 0.1}
    changed = Recipe.model_validate(fields)
    model = adapt(load_base("custom", tiny_sam_folder).model, changed.adapter, seed=0)
    model.get_base_model().add_dense_decoder(changed.dense, seed=0)
    adapted, dense = make_optimizer(model, changed).param_groups
    assert (adapted["lr"], adapted["weight_decay"]) == (1e-4, 0.1)
    assert (dense["lr"], dense["weight_decay"]) == (3e-3, 0.2)
    own = {id(p) for p in model.get_base_model().dense_decoder.parameters()}
    assert {id(p) for p in dense["params"]} == own
    assert {id(p) for p in adapted["params"]} == {id(p) for p in model.parameters() if p.requires_grad} - own
