"""Folds and rows as tasks of a Ray cluster: each is what one process does of a run folder that all share."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from nuclora.errors import NucloraError
from nuclora.run import Run
from nuclora.scale.cluster import POLL, TRIES, Cluster, Place, WorkerLost
from nuclora.scale.pool import given_up
from nuclora.training.ablation import Ablation
from nuclora.training.changes import AblationRow
from nuclora.training.crossval import CrossValidation
from nuclora.training.interrupt import Interrupt
from nuclora.training.monitor import Monitor
from nuclora.training.plan import check_recipe

# A network file system may take so long to see that the process which held a fold is dead.
_PATIENCE: Final = 120.0


def cross_validate_on(
    cluster: Cluster,
    work: CrossValidation,
    monitor: Monitor | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Run:
    """Do what :meth:`nuclora.training.crossval.CrossValidation.run` does, a task a fold and one for the base.

    A fold that fails does not keep the others from their end.

    Args:
        cluster: The cluster; its machines share the run folder.
        work: What is to be done.
        monitor: Hears of the records of training.
        say: Is told, a line at a time, which task has ended and how.

    Returns:
        The run, to be read.

    Raises:
        NucloraError: As there, or a task cost several workers their life.
        Stopped: A stop was asked for; everything is saved.
    """
    chosen = work.choose_folds()
    base = work.load_base()
    check_recipe(work.recipe, work.fold_table, chosen, base, 1)
    # Before the tasks, which would all create it at once.
    run = work.start(base)
    follower = _Follower(run, chosen, monitor or Monitor())
    tasks = [_Task(f"fold {fold}", "", replace(work, folds=[fold], zero_shot=False)) for fold in chosen]
    if work.zero_shot:
        # Last: it takes less time than a fold.
        tasks.append(_Task("zero-shot", "", replace(work, train=False)))
    failed = _work_off(cluster, tasks, follower.look, lambda task: None, say)
    for error in failed.values():
        raise error
    return run


def run_ablation_on(
    cluster: Cluster,
    ablation: Ablation,
    *,
    before: Callable[[AblationRow], Monitor | None] = lambda row: None,
    after: Callable[[AblationRow], object] = lambda row: None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, NucloraError]:
    """Do what :func:`nuclora.training.ablation.run_ablation` does, a task for each fold of each row.

    Args:
        cluster: The cluster; its machines share the folder of the ablation.
        ablation: As there.
        before: Called for each row, before all of them begin; returns what watches it.
        after: Called after each task of a row.
        say: As in :func:`cross_validate_on`.

    Returns:
        The errors by row.

    Raises:
        Stopped: A stop was asked for; everything is saved.
    """
    tasks: list[_Task] = []
    followers: list[_Follower] = []
    failed: dict[str, NucloraError] = {}
    rows = {row.name: row for row in ablation.rows if row.name in ablation.pending}
    for row in rows.values():
        work = ablation.work_of(row)
        try:
            run = work.start(work.load_base())
        except NucloraError as error:
            failed[row.name] = error
            continue
        followers.append(_Follower(run, ablation.folds, before(row) or Monitor()))
        tasks += [
            _Task(f"row {row.name}, fold {fold}", row.name, replace(work, folds=[fold])) for fold in ablation.folds
        ]

    def look() -> None:
        for follower in followers:
            follower.look()

    failed |= _work_off(cluster, tasks, look, lambda task: after(rows[task.row]), say)
    return failed


@dataclass(frozen=True, eq=False)
class _Task:
    """A part of a cross-validation.

    Attributes:
        title: What it is, to be told.
        row: Row of an ablation.
        work: What is to be done.
    """

    title: str
    row: str
    work: CrossValidation


def _cross_validate(place: Place, work: CrossValidation) -> None:
    place.take()
    work.run(patience=_PATIENCE)


def _work_off(
    cluster: Cluster,
    tasks: Sequence[_Task],
    look: Callable[[], None],
    after: Callable[[_Task], object],
    say: Callable[[str], None],
) -> dict[str, NucloraError]:
    """Run tasks, each again if its worker dies; the errors by row (or, of rows without a name, of all)."""
    import ray

    # Begun again by us, and not by Ray, which would for ever try again what fills a machine's memory.
    function = ray.remote(max_retries=0, **cluster.needs)(_cross_validate)
    failed: dict[str, NucloraError] = {}
    deaths: Counter[_Task] = Counter()

    def submit(task: _Task) -> Any:
        return function.remote(Place(task.work.out / "run.json"), task.work)

    def settle(task: _Task, reference: Any) -> None:
        try:
            cluster.result(reference)
        except WorkerLost as loss:
            deaths[task] += 1
            if deaths[task] < TRIES:
                say(f"{task.title}: its worker died ({loss}); again, from what is saved")
                waiting[submit(task)] = task
                return
            failed.setdefault(task.row, given_up(task.title, loss))
            say(f"{task.title}: given up")
        except NucloraError as error:
            failed.setdefault(task.row, error)
            say(f"{task.title}: {error}")
        else:
            say(f"{task.title}: done")
        after(task)

    with Interrupt() as interrupt:
        waiting = {submit(task): task for task in tasks}
        try:
            while waiting:
                done, _ = ray.wait(list(waiting), timeout=POLL)
                look()
                for reference in done:
                    settle(waiting.pop(reference), reference)
                interrupt.check()
        finally:
            # Only where something has gone wrong, or a stop was asked for: those at work save what they have.
            for reference in waiting:
                ray.cancel(reference)
            if waiting:
                ray.wait(list(waiting), num_returns=len(waiting))
    return failed


class _Follower:
    """Tells a monitor of what workers write into the training logs of a run."""

    def __init__(self, run: Run, folds: Sequence[int], monitor: Monitor) -> None:
        self._run = run
        self._monitor = monitor
        # What earlier sessions wrote is known.
        self._told = {fold: len(run.training_log(fold).raw_lines()) for fold in folds}

    def look(self) -> None:
        for fold, told in self._told.items():
            lines = self._run.training_log(fold).raw_lines()
            # One that was begun again has gone back to its last checkpoint.
            for line in lines[min(told, len(lines)) :]:
                # Who reads the log for its numbers is told what is damaged.
                with contextlib.suppress(ValueError):
                    self._monitor.record(fold, json.loads(line))
            self._told[fold] = len(lines)
