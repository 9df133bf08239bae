from __future__ import annotations

import signal
import subprocess

import psutil
import pytest
import torch

from nuclora.data import open_tiles
from nuclora.errors import NucloraError
from nuclora.training import loader
from nuclora.training.samples import TrainingSamples


@pytest.fixture
def samples(tiny_data, tiny_recipe):
    return TrainingSamples(open_tiles(tiny_data), tiny_recipe, size=64, normalise="unit", epoch=0)


def _load(samples, workers: int, batches=((3, 1), (0, 2))):
    return list(loader.load_batches(samples, [list(batch) for batch in batches], torch.device("cpu"), workers))


def test_batches_come_in_order_whoever_reads_them(samples, monkeypatch):
    monkeypatch.setattr(loader, "usable_cores", lambda: 3)
    alone, together = _load(samples, 0), _load(samples, 2)
    for batches in (alone, together):
        assert [[len(sample.ids) for sample in batch] for batch in batches] == [
            [len(samples[index].ids) for index in batch] for batch in ((3, 1), (0, 2))
        ]
    assert torch.equal(alone[1][1].pixel_values, together[1][1].pixel_values)


def test_a_tile_that_another_process_cannot_read_is_named(samples, monkeypatch):
    monkeypatch.setattr(loader, "usable_cores", lambda: 3)

    def fail(self, index):
        raise NucloraError("no such file", path="tile.png")

    monkeypatch.setattr(TrainingSamples, "__getitem__", fail)
    with pytest.raises(NucloraError, match=r"^tile\.png: no such file$"):
        _load(samples, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_of_a_group_leaves_the_readers_alive(samples, monkeypatch, number):
    monkeypatch.setattr(loader, "usable_cores", lambda: 3)
    before = psutil.Process().children()
    # More than are read ahead: readers are still at work after the signal.
    batches = loader.load_batches(samples, [[0, 1]] * 12, torch.device("cpu"), 2)
    next(batches)
    readers = [child for child in psutil.Process().children() if child not in before]
    assert len(readers) == 2
    # Sent by somebody else: what their own parent tells them they do.
    subprocess.run(["kill", f"-{int(number)}", *(str(reader.pid) for reader in readers)], check=True)
    assert len(list(batches)) == 11
    _, alive = psutil.wait_procs(readers, timeout=20)
    assert not alive


def test_readers_of_a_training_that_failed_end_with_it(samples, monkeypatch):
    monkeypatch.setattr(loader, "usable_cores", lambda: 3)
    before = psutil.Process().children()
    batches = loader.load_batches(samples, [[0, 1]] * 12, torch.device("cpu"), 2)
    next(batches)
    readers = [child for child in psutil.Process().children() if child not in before]
    # As at the end of a process, when nobody asks them for more.
    for reader in readers:
        reader.terminate()
    _, alive = psutil.wait_procs(readers, timeout=20)
    assert readers
    assert not alive


@pytest.mark.parametrize(
    ("device", "processes", "workers", "expected"),
    [
        ("cpu", None, 60, 7), ("cuda", None, 60, 8), ("cuda", None, 5, 5), ("cuda", "4", 60, 2), ("cpu", "4", 60, 1),
        ("cpu", "8", 60, 0), ("cuda", "16", 60, 1),
    ],
)  # fmt: skip
def test_the_processes_of_one_machine_share_its_cores(device, processes, workers, expected, monkeypatch):
    monkeypatch.setattr(loader, "usable_cores", lambda: 8)
    if processes is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert loader.loader_processes(torch.device(device), workers) == expected
