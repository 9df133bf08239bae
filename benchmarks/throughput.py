"""Tiles a second, from pixels to labels, of several processes that share a GPU (or the cores of a CPU).

The network runs on the device and the rest on the cores, so one process leaves a GPU idle most of the time. Every
process finds the nuclei of the same tiles, again and again for some seconds; reading and writing files is left out.
The reference is one process with the network in its published form, eager, in float32.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from common import Results, parser
from nuclora.data.synthetic import ORGANS, synthesize_tile
from nuclora.inference.loading import load_model
from nuclora.inference.predictor import Predictor
from nuclora.metrics import score
from nuclora.models.adapter import shipped_adapter
from nuclora.models.precision import Precision
from plain_sam import as_published

_MICRONS = 0.25
_SIDE = 512
_LEAST_PQ = 0.9
PLAIN = "the published form, float32"
SIDES: dict[str, Precision] = {PLAIN: "no", "float32": "no", "bf16": "bf16"}


def load(side: str, adapter: Path, device: str) -> Predictor:
    """A predictor, as `nuclora predict` loads it, or its published form."""
    predictor = load_model(adapter, device=device, precision=SIDES[side], prompts=False)
    return as_published(predictor) if side == PLAIN else predictor


def work(index: int, adapter: Path, device: str, seconds: float, barrier: Barrier, orders: Any, counts: Any) -> None:
    """Take orders, a side and how many processes are to run it, until there is none."""
    tiles = [synthesize_tile(_SIDE, seed, ORGANS[seed % len(ORGANS)]).image for seed in range(4)]
    predictors: dict[str, Predictor] = {}
    while order := orders.get():
        side, processes = order
        if index < processes:
            if side not in predictors:
                predictors[side] = load(side, adapter, device)
                if index == 0:
                    found = (predictors[name].nuclei(tiles[0]).labels for name in (PLAIN, side))
                    same = score(*found)["pq"]
                    if same < _LEAST_PQ:
                        sys.exit(f"{side}: other nuclei than the published form's (PQ {same:.3f})")
            for tile in tiles:
                predictors[side].nuclei(tile)
        barrier.wait()
        done, began = 0, time.perf_counter()
        while index < processes and time.perf_counter() - began < seconds:
            predictors[side].nuclei(tiles[done % len(tiles)])
            done += 1
        counts.put((done, time.perf_counter() - began))
        barrier.wait()


class Busy(threading.Thread):
    """Share of the time that a GPU computed, as its driver says."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.shares: list[float] = []
        self.over = threading.Event()

    def run(self) -> None:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self.over.wait(0.3):
            with contextlib.suppress(OSError, ValueError, subprocess.CalledProcessError):
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                self.shares.append(float(done.stdout.split()[0]))

    def mean(self) -> str:
        """Without the first and the last, which may be of what came before or after."""
        self.over.set()
        self.join()
        inner = self.shares[1:-1]
        return f"{sum(inner) / len(inner):.0f} %" if inner else "not known"


def require_all(workers: Sequence[BaseProcess]) -> None:
    if not all(worker.is_alive() for worker in workers):
        sys.exit("a process ended; what it says is above")


def wait_for(barrier: Barrier, workers: Sequence[BaseProcess]) -> None:
    """Until all of them wait there."""
    while barrier.n_waiting < len(workers):
        time.sleep(0.05)
        require_all(workers)


def next_count(counts: Any, workers: Sequence[BaseProcess]) -> tuple[int, float]:
    """Of one of the processes, unless one of them ends, as for want of memory."""
    while True:
        with contextlib.suppress(queue.Empty):
            count: tuple[int, float] = counts.get(timeout=1)
            return count
        require_all(workers)


def main() -> None:
    options = parser(__doc__ or "", __file__)
    options.add_argument("--adapter", type=Path, help="Whose nuclei; by default the adapter in the box.")
    options.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="How many at once, in turn.")
    options.add_argument("--seconds", type=float, default=4, help="For how long each.")
    given = options.parse_args()
    adapter = given.adapter or shipped_adapter()
    context = multiprocessing.get_context("spawn")
    most = max(given.processes)
    barrier, counts = context.Barrier(most + 1), context.Queue()
    queues = [context.Queue() for _ in range(most)]
    workers = [
        context.Process(
            target=work, args=(i, adapter, given.device, given.seconds, barrier, orders, counts), daemon=True
        )
        for i, orders in enumerate(queues)
    ]
    for worker in workers:
        worker.start()
    results = Results(given.device)
    reference = 0.0
    whose = f", {adapter}" if given.adapter else ""
    for side in SIDES:
        for processes in given.processes if side != PLAIN else [1]:
            for orders in queues:
                orders.put((side, processes))
            wait_for(barrier, workers)
            busy = Busy()
            barrier.wait()
            if given.device == "cuda":
                busy.start()
            rate = sum(done / seconds for done, seconds in (next_count(counts, workers) for _ in workers))
            share = busy.mean() if given.device == "cuda" else "not known"
            wait_for(barrier, workers)
            barrier.wait()
            reference = reference or rate
            # At once: what is measured is not lost where time runs out.
            print(
                f"{side}, {processes} processes: {rate:.1f} tiles/s, "
                f"{rate * (_SIDE * _MICRONS / 1000) ** 2:.2f} mm2/s, device busy {share}",
                flush=True,
            )
            if side != PLAIN:
                results.add(f"a tile on {given.device}, {processes} processes{whose}: {side}", 1 / rate, 1 / reference)
                results.write(given.out)
    for orders in queues:
        orders.put(None)
    results.finish(given.out)


if __name__ == "__main__":
    main()
