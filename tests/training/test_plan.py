from __future__ import annotations

import re

import pytest

from nuclora.errors import NucloraError
from nuclora.training.plan import Plan


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
