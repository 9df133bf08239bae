"""A batch in parts has the gradients of the whole one, and memory that runs out makes the parts smaller."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from nuclora.cli.progress import describe
from nuclora.data import open_tiles
from nuclora.data.folds import make_folds
from nuclora.errors import NucloraError
from nuclora.models.checkpoints import load_base
from nuclora.models.lora import adapt
from nuclora.recipe import Recipe
from nuclora.run import Run
from nuclora.training.crossval import cross_validate
from nuclora.training.gradients import BatchGradients
from nuclora.training.interrupt import Stopped
from nuclora.training.monitor import Monitor
from nuclora.training.plan import Plan
from nuclora.training.samples import TrainingSamples
from nuclora.training.step import TileLoss


def _changed(recipe: Recipe, changes: dict) -> Recipe:
    fields = recipe.model_dump()
    for part, values in changes.items():
        fields[part] = fields[part] | values if fields[part] else values
    return Recipe.model_validate(fields)


@pytest.fixture(scope="module")
def prompted(tiny_recipe: Recipe) -> Recipe:
    """Four tiles a step, with dropout; little is evaluated."""
    train = {"batch_size": 4, "epochs": 4, "validations_per_epoch": 0, "checkpoint_steps": 50}
    return _changed(
        tiny_recipe, {"train": train, "evaluate": {"protocols": ("oracle-box",)}, "loss": {"dice": 1.0, "iou": 1.0}}
    )


@pytest.fixture(scope="module")
def dense(prompted: Recipe) -> Recipe:
    changes = {"augment": {"crop": 32}, "dense": {"window": 64, "channels": 8, "fine_channels": 8}}
    return _changed(prompted, changes)


def _loss(recipe: Recipe, folder: Path) -> TileLoss:
    model = load_base("custom", folder).model
    adapted = adapt(model, recipe.adapter, seed=1)
    if recipe.dense is not None:
        model.add_dense_decoder(recipe.dense, seed=1)
    return TileLoss(adapted, recipe.loss, recipe.prompts.chunk, recipe.dense)


def _samples(recipe: Recipe, data: Path, count: int) -> list:
    size = 64 if recipe.dense is None else 32
    dataset = TrainingSamples(open_tiles(data), recipe, size=size, normalise="unit", epoch=0)
    return [dataset[index] for index in range(count)]


def _batch_gradients(loss: TileLoss, at_once: int) -> BatchGradients:
    AcceleratorState._reset_state()
    return BatchGradients(loss, loss.dense is None, Accelerator(cpu=True), at_once)


def _compute(gradients: BatchGradients, samples, halved=lambda: None):
    gradients.loss.zero_grad()
    value = gradients.compute(samples, lambda part: part, halved)
    found = {name: p.grad.clone() for name, p in gradients.loss.named_parameters() if p.grad is not None}
    return value, found


class _LittleMemory:
    """Lets the network see at most so many tiles at once, from the nth pass on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tiles: int, passes: int = 0, error: Exception | None = None):
        self.tiles, self.passes, self.refused = tiles, passes, 0
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")
        network = TileLoss._network

        def limited(loss: TileLoss, samples):
            self.passes -= 1
            # What a pass computed before memory ran out must leave nothing behind.
            result = network(loss, samples)
            if self.passes < 0 and len(samples) > self.tiles:
                self.refused += 1
                raise self.error
            return result

        monkeypatch.setattr(TileLoss, "_network", limited)


def _in_float64(samples: list) -> list:
    def change(part):
        values = {name: getattr(part, name) for name in part.__dataclass_fields__}
        doubled = {
            name: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for name, v in values.items()
        }
        return type(part)(**doubled)

    return [change(dataclasses.replace(sample, dense=sample.dense and change(sample.dense))) for sample in samples]


@pytest.mark.parametrize("kind", ["prompted", "dense"])
def test_parts_have_the_loss_and_gradients_of_the_whole_batch(kind, request, tiny_data, tiny_sam_folder, monkeypatch):
    # In float64, which tells rounding from a difference; the losses ask for float32 by this name.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    recipe = _changed(request.getfixturevalue(kind), {"adapter": {"dropout": 0.0}})
    loss = _loss(recipe, tiny_sam_folder).double()
    samples = _in_float64(_samples(recipe, tiny_data, 3))
    expected = loss(samples)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}
    for at_once in (3, 2, 1):
        value, found = _compute(_batch_gradients(loss, at_once), samples)
        torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-6, atol=0)
        assert found.keys() == gradients.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, gradients[name], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", ["prompted", "dense"])
@pytest.mark.parametrize(("fits", "halvings"), [(2, 1), (1, 2)])
def test_out_of_memory_gives_what_smaller_parts_would(
    kind, fits, halvings, request, tiny_data, tiny_sam_folder, monkeypatch
):
    recipe = request.getfixturevalue(kind)
    loss, samples = _loss(recipe, tiny_sam_folder).train(), _samples(recipe, tiny_data, 4)
    expected, gradients = _compute(_batch_gradients(loss, fits), samples)
    memory = _LittleMemory(monkeypatch, fits)
    parts, told = _batch_gradients(loss, 4), []
    value, found = _compute(parts, samples, lambda: told.append(parts.at_once))
    assert memory.refused == halvings
    assert told == [4 >> count + 1 for count in range(halvings)]
    assert torch.equal(value, expected)
    assert found.keys() == gradients.keys()
    assert all(torch.equal(gradient, gradients[name]) for name, gradient in found.items())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        # Of the driver, of the libraries that allocate for themselves, and of an Apple GPU.
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.05 GB, other allocations: 2.29 GB)"),
    ],
)
def test_one_tile_that_does_not_fit_says_what_to_set(error, prompted, tiny_data, tiny_sam_folder, monkeypatch):
    _LittleMemory(monkeypatch, 0, error=error)
    parts = _batch_gradients(_loss(prompted, tiny_sam_folder), 2)
    with pytest.raises(NucloraError, match=r"^out of memory with one tile at once; lower .*train\.checkpointing=true"):
        _compute(parts, _samples(prompted, tiny_data, 2))
    assert parts.at_once == 1


def test_another_error_is_not_taken_for_memory(prompted, tiny_data, tiny_sam_folder, monkeypatch):
    _LittleMemory(monkeypatch, 0, error=RuntimeError("shapes"))
    with pytest.raises(RuntimeError, match="shapes"):
        _compute(_batch_gradients(_loss(prompted, tiny_sam_folder), 2), _samples(prompted, tiny_data, 2))


@pytest.mark.parametrize(("tiles", "at_once", "accumulation"), [(4, 2, 4), (4, 8, 2), (3, 3, 3), (3, 2, 3), (6, 3, 6)])
def test_several_processes_are_told_to_split_the_batch(
    tiles, at_once, accumulation, prompted, tiny_data, tiny_sam_folder, monkeypatch
):
    _LittleMemory(monkeypatch, 1)
    parts = _batch_gradients(_loss(prompted, tiny_sam_folder), at_once)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    told = rf"none can halve .*--set train\.accumulation={accumulation} under another -o"
    with pytest.raises(NucloraError, match=told):
        _compute(parts, _samples(prompted, tiny_data, tiles))
    Plan(100, 2 * tiles, accumulation, processes=2, seed=0).check()


class _StopAfter(Monitor):
    def __init__(self, step: int) -> None:
        self.step = step

    def record(self, fold, record):
        if record["kind"] == "step" and record["step"] == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def train(prompted, tiny_data, tiny_sam_folder, tmp_path):
    def into(name: str, monitor: Monitor | None = None) -> Run:
        tiles = open_tiles(tiny_data)
        table = make_folds(tiles, 2, prompted.seed)
        return cross_validate(
            tiles, prompted, tmp_path / name, fold_table=table, folds=[1], weights=tiny_sam_folder, zero_shot=False,
            evaluate=False, monitor=monitor,
        )  # fmt: skip

    return into


def _same_training(run: Run, other: Run) -> None:
    records = [each.training_records(1) for each in (run, other)]
    what = ("kind", "step", "loss", "tiles_at_once")
    assert [[r.get(name) for name in what] for r in records[0]] == [[r.get(name) for name in what] for r in records[1]]
    left, right = (
        safetensors.torch.load_file(each.adapter_folder(1) / "adapter_model.safetensors") for each in (run, other)
    )
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_resumed_run_goes_on_with_the_parts_that_fitted(train, monkeypatch):
    with monkeypatch.context() as patch:
        # Memory falls short at the second step.
        _LittleMemory(patch, 2, passes=1)
        unbroken = train("unbroken")
    with monkeypatch.context() as patch:
        _LittleMemory(patch, 2, passes=1)
        with pytest.raises(Stopped):
            train("broken", _StopAfter(3))
    with monkeypatch.context() as patch:
        memory = _LittleMemory(patch, 2)
        broken = train("broken")
    assert memory.refused == 0
    records = unbroken.training_records(1)
    assert [(r["kind"], r["step"]) for r in records if r["kind"] != "epoch"] == [
        ("step", 1), ("memory", 1), ("step", 2), ("step", 3), ("step", 4)
    ]  # fmt: skip
    (told,) = [r for r in records if r["kind"] == "memory"]
    assert describe(told) == "out of memory after step 1, from here 2 at once of each batch"
    _same_training(unbroken, broken)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "place", ["nuclora.training.records.TrainingRecords.add", "nuclora.training.trainer.save_checkpoint"]
)
def test_a_halving_is_told_once_wherever_it_is_killed(place, train, monkeypatch):
    def die(*_, **__):
        raise _Killed

    with monkeypatch.context() as patch:
        # From the first step on: nothing is done that a checkpoint could be behind of.
        _LittleMemory(patch, 1)
        unbroken = train("unbroken")
    assert [r["tiles_at_once"] for r in unbroken.training_records(1) if r["kind"] == "memory"] == [2, 1]
    with monkeypatch.context() as patch:
        _LittleMemory(patch, 1)
        patch.setattr(place, die)
        with pytest.raises(_Killed):
            train("broken")
    with monkeypatch.context() as patch:
        _LittleMemory(patch, 1)
        _same_training(unbroken, train("broken"))
