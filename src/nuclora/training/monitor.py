"""What watches a run while it goes on: nothing, a progress display, TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Monitor:
    """Hears of everything a run does; this one keeps silent."""

    def training(self, fold: int, steps: int, done: int) -> None:
        """The training of a fold begins, at step `done` of `steps`."""

    def record(self, fold: int, record: Mapping[str, Any]) -> None:
        """A line of `metrics.jsonl` was written."""

    def evaluated(self, title: str, done: int, tiles: int) -> None:
        """An evaluation has done so many of its tiles; none when it begins."""

    def close(self) -> None:
        """Nothing more comes."""


class Monitors(Monitor):
    """Several monitors as one."""

    def __init__(self, monitors: Sequence[Monitor]) -> None:
        self.monitors = monitors

    def training(self, fold: int, steps: int, done: int) -> None:
        for monitor in self.monitors:
            monitor.training(fold, steps, done)

    def record(self, fold: int, record: Mapping[str, Any]) -> None:
        for monitor in self.monitors:
            monitor.record(fold, record)

    def evaluated(self, title: str, done: int, tiles: int) -> None:
        for monitor in self.monitors:
            monitor.evaluated(title, done, tiles)

    def close(self) -> None:
        for monitor in self.monitors:
            monitor.close()


class TensorBoardMonitor(Monitor):
    """Writes every number of the training as TensorBoard scalars, a run a fold (extra `track`)."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer_class = SummaryWriter
        self._writers: dict[int, Any] = {}

    def record(self, fold: int, record: Mapping[str, Any]) -> None:
        if fold not in self._writers:
            self._writers[fold] = self._writer_class(str(self._folder / f"fold-{fold}"))
        for name, value in record.items():
            if isinstance(value, float):
                self._writers[fold].add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
