"""What a recipe comes to on a base and a fold: input, tiles, batches and learning rates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    group_of = {row.tile: row.group for row in table.rows}
    for fold in folds:
        fit, _ = split_tiles(recipe, table, fold)
        make_plan(recipe, fold, [group_of[name] for name in fit], processes).check()


@dataclass(frozen=True)
class Plan:
    """Which tiles each process sees at each step of an epoch.

    Attributes:
        tiles: How many there are, and how many an epoch shows.
        batch_size: Tiles a step, over all processes.
        accumulation: Parts that a process works its share of a batch off in.
        processes: How many work together.
        seed: Of the order.
        shares: How often an epoch shows each tile, on average; none: once.
    """

    tiles: int
    batch_size: int
    accumulation: int
    processes: int
    seed: int
    shares: tuple[float, ...] | None = None

    @property
    def steps(self) -> int:
        """Steps of one epoch; the tiles that do not fill a last batch wait for the next epoch's order."""
        return self.tiles // self.batch_size

    @property
    def at_once(self) -> int:
        """Tiles that go through a process's network together, to begin with."""
        return self.batch_size // self.processes // self.accumulation

    def batches(self, epoch: int, process: int, first_step: int) -> list[list[int]]:
        """Tile indices of one process's share of every batch from a step on.

        The second time that an epoch shows tile i it is i + `tiles`, then i + 2 `tiles`.
        """
        generator = np.random.default_rng(derive_seed(self.seed, "order", epoch))
        order = generator.permutation(self.tiles)
        if self.shares is not None:
            order = generator.permutation(_draw(np.asarray(self.shares)[order], order, generator))
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


def _draw(shares: NDArray[np.float64], tiles: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Each tile as often as its share says, rounded up or down (systematic sampling), as many as there are tiles."""
    edges = np.minimum(np.cumsum(shares) + generator.random(), len(tiles))
    # The shares' sum ends a hair beside it.
    edges[-1] = len(tiles)
    counts = np.diff(np.floor(edges), prepend=0).astype(int)
    return np.concatenate([tile + len(tiles) * np.arange(count) for tile, count in zip(tiles, counts, strict=True)])


def make_plan(recipe: Recipe, fold: int, groups: Sequence[str], processes: int) -> Plan:
    """The plan of one fold's training.

    Args:
        recipe: `seed` and `train` are read.
        fold: The fold.
        groups: The group of each tile to fit, in their order; with `train.balance` b a tile of a group of n is shown in
            proportion to n ** -b.
        processes: How many work together.
    """
    train = recipe.train
    shares = None
    if train.balance:
        sizes = Counter(groups)
        weights = [sizes[group] ** -train.balance for group in groups]
        scale = len(groups) / sum(weights)
        shares = tuple(weight * scale for weight in weights)
    return Plan(len(groups), train.batch_size, train.accumulation, processes, derive_seed(recipe.seed, fold), shares)


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
