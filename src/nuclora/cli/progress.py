"""A run's progress on the terminal: a live bar where there is one, a line now and then where not."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from nuclora.data.folds import fold_name
from nuclora.data.tiles import counted
from nuclora.training.monitor import Monitor

_SECONDS_BETWEEN_LINES = 60.0


def say(line: str) -> None:
    """Tell something on standard error, as it is."""
    Console(stderr=True).print(line, highlight=False, soft_wrap=True, markup=False)


class LineMonitor(Monitor):
    """Tells what several workers do, in lines; of each thing that goes on at most one a minute.

    Args:
        prefix: What each line begins with.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._said: dict[str, float] = {}

    def record(self, fold: int, record: Mapping[str, Any]) -> None:
        title = f"{self._prefix}{fold_name(fold)}"
        if record["kind"] == "step":
            line = f"step {record['step']}  loss {record['loss']:.4f}  {record['tiles_per_second']:.2f} tiles/s"
            self._now_and_then(title, line)
        else:
            say(f"{title}: {describe(record)}")

    def predicted(self, done: int, images: int) -> None:
        """A prediction has done so many of its images; none when it begins."""
        self._now_and_then("predict", f"{done}/{images}  images", at_once=done == images)

    def predicted_block(self, name: str, done: int, blocks: int) -> None:
        """The prediction of a slide has done so many of its blocks."""
        self._now_and_then(f"predict {name}", f"{done}/{blocks}  blocks", at_once=done == blocks)

    def _now_and_then(self, title: str, line: str, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now - self._said.get(title, -math.inf) > _SECONDS_BETWEEN_LINES:
            self._said[title] = now
            say(f"{title}: {line}")


def describe(record: Mapping[str, Any]) -> str:
    """Whatever a training records beside its steps, in a few words."""
    if record["kind"] == "memory":
        return f"out of memory after step {record['step']}, from here {record['tiles_at_once']} at once of each batch"
    if record["kind"] == "epoch":
        return f"epoch {record['epoch']}, mean loss {record['loss']:.4f}"
    scores = "  ".join(f"{name.upper()} {record[name]:.3f}" for name in ("dice", "aji", "pq"))
    return f"step {record['step']}, {record['protocol']} on {counted(record['tiles'], 'tile')}  {scores}"


class ProgressMonitor(Monitor):
    """Shows loss, rate, time left and memory on standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._progress.start()
        self._task: TaskID | None = None
        self._title = ""
        self._slide: str | None = None
        self._count = 0
        self._total = 0
        self._began = self._said = time.monotonic()

    def training(self, fold: int, steps: int, done: int) -> None:
        self._begin(f"train fold {fold}" if fold else "train", steps, done)

    def record(self, fold: int, record: Mapping[str, Any]) -> None:
        if record["kind"] == "step":
            self._advance(
                f"loss {record['loss']:.4f}  {record['tiles_per_second']:.2f} tiles/s  {record['memory_mb']:,.0f} MB"
            )
        else:
            self._say(f"{self._title}: {describe(record)}")

    def evaluated(self, title: str, done: int, tiles: int) -> None:
        if done == 0:
            self._begin(f"evaluate {title}", tiles, 0)
        else:
            self._advance("tiles")

    def predicted(self, done: int, images: int) -> None:
        """A prediction has done so many of its images; none when it begins."""
        if done == 0 or self._slide is not None:
            self._slide = None
            self._begin("predict", images, done)
        else:
            self._advance("images")

    def predicted_block(self, name: str, done: int, blocks: int) -> None:
        """The prediction of a slide has done so many of its blocks; called first with those of an earlier run."""
        if name != self._slide:
            self._slide = name
            self._begin(f"predict {name}", blocks, done)
        else:
            self._advance("blocks")

    def calibrated(self, done: int, total: int) -> None:
        """A network in 8 bits has looked at so many windows; none when it begins."""
        if done == 0:
            self._begin("calibrate", total, 0)
        else:
            self._advance("windows")

    def close(self) -> None:
        self._progress.stop()

    def _begin(self, title: str, total: int, done: int) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._title, self._total, self._count = title, total, done
        self._began = self._said = time.monotonic()
        self._first = done
        self._task = self._progress.add_task(escape(title), total=total, completed=done, detail="")

    def _advance(self, detail: str) -> None:
        self._count += 1
        if self._task is not None:
            self._progress.update(self._task, advance=1, detail=detail)
        now = time.monotonic()
        if not self._live and (now - self._said > _SECONDS_BETWEEN_LINES or self._count == self._total):
            self._said = now
            left = (now - self._began) / (self._count - self._first) * (self._total - self._count)
            self._say(f"{self._title}: {self._count}/{self._total}  {detail}  {left / 60:.0f} min left")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)
