"""The batches of an epoch, read and augmented by processes of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from nuclora.errors import NucloraError
from nuclora.machine import usable_cores
from nuclora.signals import start_loading
from nuclora.training.samples import TrainingSample, TrainingSamples


def load_batches(
    samples: TrainingSamples, batches: Sequence[list[int]], device: torch.device, workers: int
) -> Iterator[list[TrainingSample]]:
    """The samples of each batch in turn, on a device.

    Args:
        samples: The samples of the epoch.
        batches: Which of them make each batch, by index.
        device: Where they are to be.
        workers: As in :func:`loader_processes`.

    Raises:
        NucloraError: A tile that cannot be read.
    """
    loader: DataLoader[TrainingSample | NucloraError] = DataLoader(
        ErrorsAsItems(samples),
        batch_sampler=batches,
        collate_fn=list,
        num_workers=loader_processes(device, workers),
        pin_memory=device.type == "cuda",
    )
    for batch in start_loading(loader):
        for item in batch:
            if isinstance(item, NucloraError):
                raise item
        yield [sample.to(device) for sample in batch]


def loader_processes(device: torch.device, workers: int) -> int:
    """How many processes read for this one; 0: it reads by itself.

    Args:
        device: Where the training computes.
        workers: At most so many. They are no more than this process's share of the cores.
    """
    # What torchrun and accelerate tell each of the processes that they start on a machine.
    share = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.type == "cuda":
        # A GPU waits for whoever reads: at least one other process does.
        return min(workers, max(1, share))
    # The training itself needs a core.
    return min(workers, max(0, share - 1))


class ErrorsAsItems(Dataset[TrainingSample | NucloraError]):
    """Gives an error in place of the sample: one that a loader's process raises would arrive as a traceback.

    Args:
        samples: The samples.
    """

    def __init__(self, samples: TrainingSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> TrainingSample | NucloraError:
        try:
            return self.samples[index]
        except NucloraError as error:
            return error
