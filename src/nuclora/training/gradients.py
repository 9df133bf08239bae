"""A batch's gradients, from as many of its tiles at once as memory holds."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from nuclora.errors import NucloraError, is_out_of_memory
from nuclora.training.samples import TrainingSample
from nuclora.training.step import split


class BatchGradients:
    """Works a batch off in parts, and where memory runs out begins it anew with parts of half the size.

    Whatever the parts, loss and gradients are those of the whole batch, but for rounding and for the numbers that
    dropout draws.

    Args:
        loss: A :class:`~nuclora.training.step.TileLoss`, as the accelerator prepared it.
        is_mean: Whether its value is a mean over tiles: then each part goes backward by itself.
        accelerator: Device, precision and processes.
        at_once: Tiles that go through the network together, to begin with.
    """

    def __init__(self, loss: nn.Module, is_mean: bool, accelerator: Accelerator, at_once: int) -> None:
        self.loss = loss
        self.is_mean = is_mean
        self.accelerator = accelerator
        self.at_once = at_once

    def compute(
        self, samples: Sequence[TrainingSample], seed: Callable[[int], int], halved: Callable[[], None]
    ) -> Tensor:
        """Leave the gradients of the batch's loss at the parameters, which must have none.

        Args:
            samples: This process's share of the batch.
            seed: Of what the nth part draws, so that a batch can be repeated.
            halved: Called after `at_once` was halved, before the batch is begun anew.

        Returns:
            The loss, without a graph.

        Raises:
            NucloraError: Out of memory, and nothing left to halve.
        """
        while True:
            try:
                return self._compute(samples, seed)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._check_can_halve(len(samples), error)
            # Only here, where the error is gone, nothing holds its frames any more, and with them the graph.
            self.loss.zero_grad()
            gc.collect()
            if self.accelerator.device.type == "cuda":
                torch.cuda.empty_cache()
            self.at_once = (min(self.at_once, len(samples)) + 1) // 2
            halved()

    def _compute(self, samples: Sequence[TrainingSample], seed: Callable[[int], int]) -> Tensor:
        parts = split(samples, self.at_once) if self.is_mean else [samples]
        total = torch.zeros((), device=self.accelerator.device)
        for index, part in enumerate(parts):
            torch.manual_seed(seed(index))
            last = index + 1 == len(parts)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.loss):
                loss = self.loss(part, self.at_once) * (len(part) / len(samples))
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _check_can_halve(self, tiles: int, error: BaseException) -> None:
        at_once = min(self.at_once, tiles)
        if at_once == 1:
            mend = "lower prompts.chunk, prompts.per_tile or input.size, or set train.checkpointing=true"
            raise NucloraError("out of memory with one tile at once", mend=f"{mend}, under another -o") from error
        if self.accelerator.num_processes > 1:
            # The others may have this batch behind them, and wait for gradients that a second try would give twice.
            # A plan takes only parts of one size.
            fewer = next(count for count in range(at_once // 2, 0, -1) if tiles % count == 0)
            raise NucloraError(
                "out of memory, and of several processes none can halve its part of a batch by itself",
                mend=f"--set train.accumulation={tiles // fewer} under another -o",
            ) from error
