from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from nuclora.data.folds import FoldRow, FoldTable
from nuclora.errors import NucloraError
from nuclora.recipe import load_recipe
from nuclora.training.plan import Plan, make_plan, split_tiles


@pytest.mark.parametrize(
    ("tiles", "batch_size", "accumulation", "processes"), [(10, 12, 2, 2), (10, 10, 1, 3), (4, 5, 3, 1), (1, 2, 1, 1)]
)
def test_the_batch_size_that_a_refusal_names_would_do(tiles, batch_size, accumulation, processes):
    for _ in range(3):
        plan = Plan(tiles, batch_size, accumulation, processes, seed=0)
        try:
            plan.check()
        except NucloraError as error:
            batch_size = int(re.fullmatch(r"--set train\.batch_size=(\d+)( or add tiles)?", error.mend)[1])
        else:
            break
    plan.check()


def test_no_batch_size_is_named_where_none_would_do():
    with pytest.raises(NucloraError, match=r"3 training tiles are fewer than a batch of 4; add tiles, or lower .*"):
        Plan(3, 4, accumulation=2, processes=2, seed=0).check()


def test_each_tile_of_an_epochs_batches_goes_to_one_process_in_the_order_of_one_process():
    alone, two = Plan(11, 4, 1, 1, seed=5), Plan(11, 4, 2, 2, seed=5)
    assert (alone.steps, alone.at_once, two.steps, two.at_once) == (2, 4, 2, 1)
    shares = [two.batches(3, process, 0) for process in (0, 1)]
    for step, batch in enumerate(alone.batches(3, 0, 0)):
        assert sorted(batch) == sorted(shares[0][step] + shares[1][step])
    assert two.batches(3, 1, 1) == shares[1][1:]
    assert alone.batches(4, 0, 0) != alone.batches(3, 0, 0)


GROUPS = ["liver"] * 60 + ["spleen"] * 15 + ["brain"] * 5


def _shown(balance: float, epochs: int = 40) -> list[Counter[int]]:
    recipe = load_recipe("embedded", [f"train.balance={balance}", "train.batch_size=4"])
    plan = make_plan(recipe, 1, GROUPS, 1)
    return [Counter(index for batch in plan.batches(epoch, 0, 0) for index in batch) for epoch in range(epochs)]


@pytest.mark.parametrize("balance", [1, 0.5])
def test_balance_shows_small_groups_more_often(balance):
    sizes = np.array((60, 15, 5))
    expected = 80 * sizes ** (1 - balance) / (sizes ** (1 - balance)).sum()
    epochs = _shown(balance)
    groups = [Counter(GROUPS[index % 80] for index in epoch.elements()) for epoch in epochs]
    means = [np.mean([group[name] for group in groups]) for name in ("liver", "spleen", "brain")]
    assert means == pytest.approx(expected, abs=0.5)
    for epoch in epochs:
        assert epoch.total() == 80
        # A repetition has a number of its own, so that it is another crop with other prompts.
        assert set(epoch.values()) == {1}
        times = Counter(index % 80 for index in epoch)
        assert {index + 80 * again for index, count in times.items() for again in range(count)} == set(epoch)
        brain = [times[index] for index in range(75, 80)]
        assert max(brain) - min(brain) <= 1
    assert any(epochs[0] != epoch for epoch in epochs[1:])


def test_without_balance_every_tile_is_shown_once():
    assert all(epoch == Counter(range(80)) for epoch in _shown(0, 3))


def test_balance_of_equal_groups_shows_every_tile_once():
    recipe = load_recipe("embedded", ["train.balance=1"])
    plan = make_plan(recipe, 1, ["a", "b"] * 20, 1)
    for epoch in range(20):
        assert sorted(index for batch in plan.batches(epoch, 0, 0) for index in batch) == list(range(40))


@pytest.mark.parametrize("validate_on", ["inner", "test"])
def test_no_tile_is_fitted_that_is_validated_or_tested_on(tiny_recipe, validate_on):
    changed = tiny_recipe.model_copy(
        update={"train": tiny_recipe.train.model_copy(update={"validate_on": validate_on})}
    )
    table = FoldTable(tuple(FoldRow(f"t{n}", f"g{n % 3}", 1 + n % 4) for n in range(60)))
    for fold in table.folds:
        fit, validation = split_tiles(changed, table, fold)
        assert validation
        assert not set(fit) & {*validation, *table.test(fold)}
        assert set(fit) | set(validation) == set(
            table.train(fold) if validate_on == "inner" else [r.tile for r in table.rows]
        )
        assert (validation == table.test(fold)) == (validate_on == "test")
