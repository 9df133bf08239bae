"""The batches of an epoch, read and augmented by processes of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from nuclora.errors import NucloraError
from nuclora.machine import usable_cores
from nuclora.training.samples import TrainingSample, TrainingSamples


def load_batches(
    samples: TrainingSamples, batches: Sequence[list[int]], device: torch.device, workers: int
) -> Iterator[list[TrainingSample]]:
    """The samples of each batch in turn, on a device.

    Args:
        samples: The samples of the epoch.
        batches: Which of them make each batch, by index.
        device: Where they are to be.
        workers: At most so many processes, and no more than there are cores to use; 0: this one reads them.

    Raises:
        NucloraError: A tile that cannot be read.
    """
    cuda = device.type == "cuda"
    loader: DataLoader[TrainingSample | NucloraError] = DataLoader(
        ErrorsAsItems(samples),
        batch_sampler=batches,
        collate_fn=list,
        # Without a GPU the training itself needs one of the cores.
        num_workers=min(workers, usable_cores() if cuda else usable_cores() - 1),
        pin_memory=cuda,
    )
    for batch in loader:
        for item in batch:
            if isinstance(item, NucloraError):
                raise item
        yield [sample.to(device) for sample in batch]


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
