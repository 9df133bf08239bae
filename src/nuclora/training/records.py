"""What a fold's training tells of itself: the lines of `metrics.jsonl`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from nuclora.run import Run
from nuclora.training.monitor import Monitor


class TrainingRecords:
    """Writes the records of one fold, in the order in which things happen.

    Args:
        run: The run.
        fold: The fold.
        monitor: Hears of every record.
        writes: Whether this process writes them; of several, one does, and nothing that the others tell is kept.
    """

    def __init__(self, run: Run, fold: int, monitor: Monitor, writes: bool) -> None:
        self.run = run
        self.fold = fold
        self.monitor = monitor
        self.writes = writes
        self._log = run.training_log(fold)

    def cut_back(self, done: int, at_once: int, validation_due: bool) -> None:
        """Forget what came after a checkpoint: a training that goes on from there tells it anew.

        Args:
            done: Steps done.
            at_once: Tiles that go through the network together. Fewer were told of only after the checkpoint.
            validation_due: The checkpoint is from before the validation of its step.
        """
        if self.writes:
            kept = [
                record
                for record in self.run.training_records(self.fold)
                if record["step"] <= done
                and record.get("tiles_at_once", at_once) >= at_once
                and not (validation_due and record["kind"] == "validation" and record["step"] == done)
            ]
            self._log.rewrite([json.dumps(record) for record in kept])

    def add(self, kind: str, epoch: int, done: int, **values: Any) -> None:
        """Write one record.

        Args:
            kind: `step`, `epoch`, `validation` or `memory`.
            epoch: Counted from 0.
            done: Steps done.
            values: What JSON can hold.
        """
        if self.writes:
            record = {"kind": kind, "epoch": epoch + 1, "step": done, **values}
            self._log.append(json.dumps(record))
            self.monitor.record(self.fold, record)

    def add_epoch(self, epoch: int, done: int) -> None:
        """Write the mean loss of an epoch's steps, those before an interruption too."""
        if self.writes:
            records = self.run.training_records(self.fold)
            losses = [r["loss"] for r in records if r["kind"] == "step" and r["epoch"] == epoch + 1]
            self.add("epoch", epoch, done, loss=float(np.mean(losses)))
