"""Actors of a Ray cluster that work off tasks; tasks of one that died go to another."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

from nuclora.errors import NucloraError
from nuclora.scale.cluster import POLL, TRIES, Cluster, WorkerLost

_ANSWER = 5.0
"""Seconds in which an idle worker answers."""

Steps: TypeAlias = Generator[Any, Any, None]
"""Calls of one worker, one after the other: yields what the call returned at once, and gets its result."""


@dataclass(frozen=True, eq=False)
class Task:
    """Work for one worker; done again from its start if that dies.

    Attributes:
        title: What it is, to be told.
        key: Tasks of one key share what a worker has at hand, and go to the same one if that may be.
        steps: Begins the work with a worker.
        give_up: Called where it has cost too many workers; by default this ends all work.
    """

    title: str
    key: str
    steps: Callable[[Any], Steps]
    give_up: Callable[[NucloraError], None] | None = None


@dataclass(eq=False)
class _Worker:
    actor: Any
    key: str = ""
    task: Task | None = None
    steps: Steps | None = None


class Pool:
    """As many actors as a cluster has room for, started when there is work for them.

    Args:
        cluster: The cluster.
        make: Starts an actor; its method `ready` returns when it can work.
        check: Called every second; what it raises stops the work.
    """

    def __init__(self, cluster: Cluster, make: Callable[[], Any], check: Callable[[], None]) -> None:
        self.cluster = cluster
        self._make = make
        self._check = check
        self._idle: list[_Worker] = []
        self._busy: dict[Any, _Worker] = {}
        self._deaths: Counter[Task | None] = Counter()
        self._given_up = 0

    def run(self, tasks: deque[Task]) -> None:
        """Work off tasks, and those that are added meanwhile.

        Raises:
            NucloraError: A task raised it, or one that knows of no giving up was given up; or workers die while they
                start, or of several tasks in a row.
        """
        import ray

        while tasks or any(worker.task for worker in self._busy.values()):
            starting = sum(worker.task is None for worker in self._busy.values())
            room = self.cluster.workers - len(self._busy) - len(self._idle)
            for _ in range(min(room, len(tasks) - len(self._idle) - starting)):
                actor = self._make()
                self._busy[actor.ready.remote()] = _Worker(actor)
            while self._idle and tasks:
                self._begin(self._idle.pop(), tasks)
            done: list[Any] = []
            if self._busy:
                done, _ = ray.wait(list(self._busy), timeout=POLL)
            else:
                # No machine is left: one may come back.
                time.sleep(POLL)
            self._check()
            for reference in done:
                self._go_on(reference, self._busy.pop(reference), tasks)

    def close(self) -> None:
        """End all actors, whatever they are at."""
        import ray

        for worker in [*self._idle, *self._busy.values()]:
            ray.kill(worker.actor)
        self._idle, self._busy = [], {}

    def _begin(self, worker: _Worker, tasks: deque[Task]) -> None:
        place = next((place for place, task in enumerate(tasks) if task.key == worker.key), 0)
        task = tasks[place]
        del tasks[place]
        worker.task, worker.key, worker.steps = task, task.key, task.steps(worker.actor)
        self._step(worker, lambda steps: next(steps))

    def _step(self, worker: _Worker, advance: Callable[[Steps], Any]) -> None:
        assert worker.steps is not None
        try:
            self._busy[advance(worker.steps)] = worker
        except StopIteration:
            worker.task = worker.steps = None
            self._idle.append(worker)
            self._given_up = 0

    def _go_on(self, reference: Any, worker: _Worker, tasks: deque[Task]) -> None:
        try:
            value = self.cluster.result(reference)
        except WorkerLost as loss:
            self._bury(worker, loss, tasks)
        except Exception as error:
            if worker.steps is None:
                raise
            told = error
            self._step(worker, lambda steps: steps.throw(told))
        else:
            if worker.steps is None:
                self._deaths[None] = 0
                self._idle.append(worker)
            else:
                self._step(worker, lambda steps: steps.send(value))

    def _bury(self, worker: _Worker, loss: WorkerLost, tasks: deque[Task]) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            # Lost may mean out of reach.
            ray.kill(worker.actor)
        self._drop_dead()
        self._deaths[worker.task] += 1
        is_over = self._deaths[worker.task] >= TRIES
        if worker.task is None:
            # A machine that goes takes all with it that were starting on it.
            if is_over and not self._idle and not any(other.task for other in self._busy.values()):
                raise given_up("starting", loss) from loss
        elif is_over:
            error = given_up(worker.task.title, loss)
            self._given_up += 1
            # Of several in a row it is not the work.
            if worker.task.give_up is None or self._given_up >= TRIES:
                raise error from loss
            worker.task.give_up(error)
        else:
            tasks.appendleft(worker.task)

    def _drop_dead(self) -> None:
        """Forget idle workers that do not answer: a machine takes all with it, and tasks would die of them in turn."""
        import ray

        asked = {worker.actor.ready.remote(): worker for worker in self._idle}
        answered = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER)[0] if asked else []
        self._idle = []
        for reference, worker in asked.items():
            try:
                if reference not in answered:
                    raise WorkerLost("no answer")
                self.cluster.result(reference)
                self._idle.append(worker)
            except WorkerLost:
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(worker.actor)


def given_up(title: str, loss: WorkerLost) -> NucloraError:
    """The error that work has cost too many workers.

    Args:
        title: What they worked on.
        loss: How the last of them was lost.
    """
    return NucloraError(
        f"{title}: {TRIES} workers died of it ({loss})",
        mend="see whether their memory was full; the same command goes on from what is done",
    )
