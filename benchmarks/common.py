"""What the benchmarks share: times of two sides taken in turn, the machine, a table and JSON.

A script makes a :class:`Results`, calls :meth:`Results.compare` (which checks that both sides give the same answer
before it times them) or :meth:`Results.add` with times of its own, and ends with :meth:`Results.finish`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nuclora.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
PARTS = ROOT / "benchmarks" / "out"
_LEAST_SECONDS = 0.3
_MOST_ROUNDS = 50


@dataclass(frozen=True)
class Row:
    """One line of the table: best seconds of our side and of the reference, if there is one."""

    name: str
    ratio: float | None
    ours_s: float
    reference_s: float | None
    device: str
    commit: str


class Results:
    """The rows of one script, all measured in one run on one device."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.device_name = device_name(device)
        self.commit = commit()
        self.rows: list[Row] = []

    def compare(
        self,
        name: str,
        ours: Callable[[], Any],
        reference: Callable[[], Any],
        same: Callable[[Any, Any], bool],
        repeats: int = 5,
        *,
        wall: bool = False,
    ) -> Row:
        """Check that both sides give the same answer, time them as :func:`best_of` does, and keep the best of each.

        The first call of each side, which is checked, is its warm-up and is not counted.
        """
        if not same(ours(), reference()):
            sys.exit(f"{name}: the two sides give different answers, so their times say nothing")
        ours_s, reference_s = best_of([ours, reference], repeats, self.device, wall=wall)
        return self.add(name, ours_s, reference_s)

    def add(self, name: str, ours_s: float, reference_s: float | None = None) -> Row:
        """Keep times that the script took itself; without a reference it is a time and no ratio."""
        ratio = None if reference_s is None else reference_s / ours_s
        row = Row(name, ratio, ours_s, reference_s, self.device_name, self.commit)
        self.rows.append(row)
        return row

    def write(self, out: Path) -> None:
        """Write the rows so far as JSON; for scripts whose machine may be taken away."""
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, json.dumps([asdict(row) for row in self.rows], indent=2) + "\n")

    def finish(self, out: Path) -> None:
        """Write the rows as JSON and print them as a table."""
        self.write(out)
        print(f"\n{self.device_name}, commit {self.commit}")
        width = max(len(row.name) for row in self.rows)
        print(f"{'':{width}}  {'ours':>10}  {'reference':>10}  {'ratio':>7}")
        for row in self.rows:
            reference = "" if row.reference_s is None else seconds(row.reference_s)
            ratio = "" if row.ratio is None else f"{row.ratio:.1f} x"
            print(f"{row.name:{width}}  {seconds(row.ours_s):>10}  {reference:>10}  {ratio:>7}")


def parser(description: str, script: str) -> argparse.ArgumentParser:
    """Options that every script has; `script` is its `__file__`."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument(
        "--repeats", type=int, default=5, help="Counted runs of each side, at least; the best is kept."
    )
    options.add_argument("--out", type=Path, default=PARTS / f"{Path(script).stem}.json", help="JSON of the rows.")
    return options


def best_of(
    sides: Sequence[Callable[[], Any]], repeats: int, device: str = "cpu", *, wall: bool = False
) -> list[float]:
    """Best seconds of each side, the sides in turn (A B A B), so that what else the machine does hits all alike.

    On a CPU they are seconds that this process computed, all its threads together, which a busy machine changes
    little; on a GPU, and where `wall` asks for it, seconds that went by. Short sides go on beyond `repeats`.
    """
    clock = time.perf_counter if wall or device != "cpu" else time.process_time
    best = [float("inf")] * len(sides)
    began = clock()
    rounds = 0
    while rounds < repeats or (rounds < _MOST_ROUNDS and clock() - began < _LEAST_SECONDS):
        rounds += 1
        for index, side in enumerate(sides):
            _wait(device)
            start = clock()
            side()
            _wait(device)
            best[index] = min(best[index], clock() - start)
    return best


def seconds(value: float) -> str:
    """A time that is read at a glance."""
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.2f} s"


def device_name(device: str) -> str:
    """The processor by name and generation, and for CPUs how many cores this process may use."""
    if device.startswith("cuda"):
        import torch

        return f"cuda: {torch.cuda.get_device_name(device)}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = (line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        said = {key.strip(): value.strip() for key, value in lines}
        if "model name" in said:
            # Virtual machines name a whole line of processors, of which generations differ by half.
            model = f"{said['model name']} (family {said.get('cpu family')}, model {said.get('model')})"
    return f"cpu: {model}, {cores} cores"


def commit() -> str:
    """The commit that is checked out, `+` where files differ from it."""

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return ""
        return done.stdout.strip()

    head = git("rev-parse", "--short=10", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks")
    return (head or "unknown") + ("+" if changed else "")


def _wait(device: str) -> None:
    """Let work that was only queued on a GPU come to its end."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
