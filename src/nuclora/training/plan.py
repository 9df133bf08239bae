"""What a recipe comes to on a base and a fold: input, tiles, batches and learning rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nuclora.data.folds import ALL_TILES, FoldTable, inner_split
from nuclora.errors import NucloraError
from nuclora.models.checkpoints import LoadedBase
from nuclora.models.lora import check_targets
from nuclora.models.preprocess import Normalise
from nuclora.recipe import Recipe, TrainSettings
from nuclora.training.seeds import derive_seed


def input_frame(recipe: Recipe, base: LoadedBase) -> tuple[int, Normalise]:
    """Side in pixels and normalisation of the network's input under a recipe on a base."""
    normalise: Normalise = "unit" if recipe.input.normalise == "unit" else base.normalise
    return recipe.input.size or base.input_size, normalise


def training_size(recipe: Recipe, base: LoadedBase) -> int:
    """Side in pixels of the network's input in training: the whole tile's, or a crop's at the same enlargement."""
    size, _ = input_frame(recipe, base)
    if recipe.dense is None or recipe.augment.crop is None:
        return size
    stride = base.model.stride
    return max(1, round(recipe.augment.crop * size / recipe.dense.window / stride)) * stride


def learning_rate_factor(train: TrainSettings, done: int, steps: int) -> float:
    """Share of the full learning rates at a step: a linear rise, then constant or half a cosine down to 0.

    Args:
        train: `warmup_steps` and `schedule` are read.
        done: Steps done before.
        steps: Steps of the whole training.
    """
    rise = min(1.0, (done + 1) / (train.warmup_steps + 1))
    return rise if train.schedule == "constant" else rise * 0.5 * (1 + math.cos(math.pi * done / steps))


def check_recipe(recipe: Recipe, table: FoldTable, folds: Sequence[int], base: LoadedBase, processes: int) -> None:
    """Refuse a recipe that the base or the folds do not go with, before anything is computed or written.

    Raises:
        NucloraError: What does not go, and how to change it.
    """
    if recipe.evaluate.tiles == "inner" and len(folds) > 1:
        # A tile may be an inner validation tile of several folds, and would count as often.
        raise NucloraError("evaluate.tiles=inner scores one fold at a time", mend=f"--folds {folds[0]}")
    size, _ = input_frame(recipe, base)
    base.model.check_input(size, size)
    check_targets(base.model, recipe.adapter)
    for fold in folds:
        make_plan(recipe, fold, len(split_tiles(recipe, table, fold)[0]), processes).check()


@dataclass(frozen=True)
class Plan:
    """Which tiles each process sees at each step of an epoch."""

    tiles: int
    batch_size: int
    accumulation: int
    processes: int
    seed: int

    @property
    def steps(self) -> int:
        """Steps of one epoch; the tiles that do not fill a last batch wait for the next epoch's order."""
        return self.tiles // self.batch_size

    @property
    def at_once(self) -> int:
        """Tiles that go through a process's network together, to begin with."""
        return self.batch_size // self.processes // self.accumulation

    def batches(self, epoch: int, process: int, first_step: int) -> list[list[int]]:
        """Tile indices of one process's share of every batch from a step on."""
        order = np.random.default_rng(derive_seed(self.seed, "order", epoch)).permutation(self.tiles)
        batches = order[: self.steps * self.batch_size].reshape(self.steps, self.batch_size)
        shares: list[list[int]] = batches[first_step:, process :: self.processes].tolist()
        return shares

    def check(self) -> None:
        """Refuse a batch that cannot be made or split.

        Raises:
            NucloraError: With the batch size that would do, if there is one.
        """
        share = self.processes * self.accumulation
        if self.batch_size % share:
            raise NucloraError(
                f"a batch of {self.batch_size} tiles cannot be split over {self.processes} processes "
                f"x {self.accumulation} accumulation steps",
                mend=f"--set train.batch_size={math.ceil(self.batch_size / share) * share}",
            )
        if self.tiles < self.batch_size:
            fits = self.tiles // share * share
            lower = "add tiles, or lower train.accumulation or the number of processes"
            raise NucloraError(
                f"{self.tiles} training tiles are fewer than a batch of {self.batch_size}",
                mend=f"--set train.batch_size={fits} or add tiles" if fits else lower,
            )


def make_plan(recipe: Recipe, fold: int, tiles: int, processes: int) -> Plan:
    """The plan of one fold's training on so many tiles."""
    train = recipe.train
    return Plan(tiles, train.batch_size, train.accumulation, processes, derive_seed(recipe.seed, fold))


def split_tiles(recipe: Recipe, table: FoldTable, fold: int) -> tuple[list[str], list[str]]:
    """Tiles of a fold to fit and to validate on, by name."""
    if recipe.train.validate_on == "test":
        return table.train(fold), [] if fold == ALL_TILES else table.test(fold)
    return inner_split(table, fold, seed=recipe.seed)


def thin(names: list[str], count: int | None) -> list[str]:
    """At most `count` names, evenly spread over the sorted list."""
    if count is None or count >= len(names):
        return names
    return [names[int(index)] for index in np.linspace(0, len(names) - 1, count)]
