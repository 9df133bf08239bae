"""Images and slides predicted by the actors of a Ray cluster, each of which loads the model once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from nuclora.allocator import keep_freed_memory
from nuclora.errors import NucloraError
from nuclora.inference.engine import NamedProgress, Progress
from nuclora.inference.hashes import Hashed, read_hash
from nuclora.inference.image_files import ImageFile
from nuclora.inference.image_worker import ImageWorker
from nuclora.inference.jobs import How, Job, failure_of, make_job
from nuclora.inference.outputs import OutputFolder, Row
from nuclora.inference.parts import remove_parts
from nuclora.inference.slides import SlideWork, has_tissue, open_work, peak_mb, predict_blocks
from nuclora.scale.cluster import Cluster, Place
from nuclora.scale.pool import Pool, Steps, Task

LONGEST_RUN: Final = 16
"""Blocks of one task, neighbours where that may be: each takes over the windows that it shares with the one before."""

# Network file systems show a new file to other machines within a minute.
_PATIENCE: Final = 90.0


class RayEngine:
    """The engine of `nuclora predict --engine ray`.

    The driver decides and notes; actors read, compute and write. What is done is known by the files, as with one
    process: blocks that an actor has written stay, whatever becomes of it.

    Args:
        cluster: The cluster.
        check: Called every second; what it raises stops the work.
    """

    def __init__(self, cluster: Cluster, check: Callable[[], None] = lambda: None) -> None:
        self._cluster = cluster
        self._check = check
        self._pool: Pool | None = None

    def close(self) -> None:
        """End the actors."""
        if self._pool:
            self._pool.close()

    def find_jobs(
        self, images: Sequence[ImageFile], folder: OutputFolder, how: How, failures: list[NucloraError]
    ) -> list[Job]:
        """As :meth:`nuclora.inference.engine.Engine.find_jobs`; each image by some actor."""
        self._pool = self._start(folder, how)
        found: dict[str, Job | NucloraError] = {}

        def steps(image: ImageFile, worker: Any) -> Steps:
            sha256 = None if how.overwrite else folder.hashes.recall(image.path)
            if sha256 is None:
                hashed: Hashed = yield worker.read_hash.remote(image)
                folder.hashes.add(image.path, hashed)
                sha256 = hashed.sha256
            try:
                found[image.name] = yield worker.make_job.remote(image, sha256)
            except NucloraError as error:
                found[image.name] = error

        def give_up(image: ImageFile, error: NucloraError) -> None:
            found[image.name] = _of_image(image, error)

        self._pool.run(
            deque(
                Task(image.name, "", functools.partial(steps, image), functools.partial(give_up, image))
                for image in images
            )
        )
        in_order = [found[image.name] for image in images]
        failures += [why_not for why_not in in_order if isinstance(why_not, NucloraError)]
        return [job for job in in_order if isinstance(job, Job)]

    def predict(
        self,
        jobs: Sequence[Job],
        folder: OutputFolder,
        how: How,
        progress: Progress | None,
        block_progress: NamedProgress | None,
    ) -> dict[str, NucloraError]:
        """As :meth:`nuclora.inference.engine.Engine.predict`; several images and blocks at once."""
        assert self._pool is not None
        tasks: deque[Task] = deque()
        failed: dict[str, NucloraError] = {}
        workers = self._cluster.workers
        done = 0

        def settle(job: Job, failure: NucloraError | None) -> None:
            nonlocal done
            done += 1
            if failure:
                failed[job.image.name] = failure
            if progress:
                progress(done, len(jobs))

        for job in jobs:
            if job.is_slide:
                slide = _Slide(job, folder, how, tasks, workers, settle, block_progress)
                tasks.append(slide.task("plan", slide.plan))
            else:
                image = _Image(job, folder, how, settle)
                tasks.append(Task(job.image.name, "", image.steps, image.give_up))
        if progress:
            progress(0, len(jobs))
        self._pool.run(tasks)
        return failed

    def _start(self, folder: OutputFolder, how: How) -> Pool:
        import ray

        # Of the folder of outputs its lock is there as long as somebody works on it.
        place = Place(folder.root / ".lock")
        actor = ray.remote(max_restarts=0, **self._cluster.needs)(Worker)
        return Pool(self._cluster, lambda: actor.remote(place, how), self._check)


def _of_image(image: ImageFile, error: NucloraError) -> NucloraError:
    return NucloraError(error.reason, path=image.path, mend=error.mend)


Settle = Callable[[Job, NucloraError | None], None]


@dataclasses.dataclass
class _Image:
    """The way of one image."""

    job: Job
    folder: OutputFolder
    how: How
    settle: Settle

    def steps(self, worker: Any) -> Steps:
        yield worker.load.remote()
        job, name = self.job, self.job.image.name
        try:
            failure = yield worker.find_nuclei.remote(job)
            if failure is None:
                wanted = self.folder.begin(job.image, job.sha256, job.made_by, self.how.formats)
                for output in wanted:
                    stamp = yield worker.write_image.remote(output, self.folder.path(name, output))
                    self.folder.wrote(name, output, stamp)
                row = yield worker.image_row.remote()
                self.folder.finish(name, wanted, row)
        except Exception as error:
            failure = failure_of(job, error)
        self.settle(job, failure)

    def give_up(self, error: NucloraError) -> None:
        """Settle it where it has cost too many workers."""
        self.settle(self.job, _of_image(self.job.image, error))


@dataclasses.dataclass
class _Slide:
    """The way of one slide: planned by one actor, its blocks found by many, its outputs written by one."""

    job: Job
    folder: OutputFolder
    how: How
    tasks: deque[Task]
    workers: int
    settle: Settle
    progress: NamedProgress | None
    blocks: int = 0
    left: int = 0
    peak_mb: float = 0.0
    is_settled: bool = False

    @property
    def root(self) -> Path:
        return self.folder.parts(self.job.image.name)

    def task(self, what: str, steps: Callable[[Any], Steps]) -> Task:
        def guarded(worker: Any) -> Steps:
            if self.is_settled:
                # One of its other tasks has failed.
                return
            yield worker.load.remote()
            try:
                yield from steps(worker)
            except Exception as error:
                self._fail(failure_of(self.job, error))

        def give_up(error: NucloraError) -> None:
            self._fail(_of_image(self.job.image, error))

        return Task(f"{self.job.image.name}, {what}", self.job.image.name, guarded, give_up)

    def _fail(self, failure: NucloraError) -> None:
        if not self.is_settled:
            self.is_settled = True
            self.settle(self.job, failure)

    def plan(self, worker: Any) -> Steps:
        self.blocks, missing = yield worker.plan_slide.remote(self.job, self.root)
        self.left = len(missing)
        self._tell()
        length = max(1, min(LONGEST_RUN, len(missing) // (2 * self.workers)))
        runs = [missing[first : first + length] for first in range(0, len(missing), length)]
        for run in reversed(runs):
            self.tasks.appendleft(self.task(f"blocks {run[0]} to {run[-1]}", self._finder(run)))
        if not runs:
            self.tasks.appendleft(self.task("outputs", self.write))

    def _finder(self, run: Sequence[int]) -> Callable[[Any], Steps]:
        def find(worker: Any) -> Steps:
            peak = yield worker.find_blocks.remote(self.job, self.root, run)
            self.peak_mb = max(self.peak_mb, peak)
            self.left -= len(run)
            self._tell()
            if not self.left:
                self.tasks.appendleft(self.task("outputs", self.write))

        return find

    def write(self, worker: Any) -> Steps:
        job, name = self.job, self.job.image.name
        wanted = self.folder.begin(job.image, job.sha256, job.made_by, self.how.formats)
        began = time.monotonic()
        for output in wanted:
            stamp = yield worker.write_slide.remote(job, self.root, output, self.folder.path(name, output))
            self.folder.wrote(name, output, stamp)
        row: Row = yield worker.slide_row.remote(job, self.root, time.monotonic() - began)
        peak = max(self.peak_mb, row.peak_mb or 0)
        self.folder.finish(name, wanted, dataclasses.replace(row, peak_mb=peak))
        remove_parts(self.root)
        self.is_settled = True
        self.settle(job, None)

    def _tell(self) -> None:
        if self.progress:
            self.progress(self.job.image.name, self.blocks - self.left, self.blocks)


class Worker:
    """What an actor does.

    Args:
        place: Where the command runs.
        how: How images are predicted.
    """

    def __init__(self, place: Place, how: How) -> None:
        self._place = place
        self._how = how
        self._images = ImageWorker(how)
        self._slide: tuple[Job, SlideWork] | None = None
        self._open = contextlib.ExitStack()

    def ready(self) -> None:
        """Take its place."""
        keep_freed_memory()
        self._place.take()

    def load(self) -> None:
        """Load the model, if it is not there."""
        self._images.predictor()

    def read_hash(self, image: ImageFile) -> Hashed:
        """Hash an image."""
        return read_hash(image.path)

    def make_job(self, image: ImageFile, sha256: str) -> Job:
        """What is to be done for an image."""
        return make_job(image, sha256, self._how)

    def find_nuclei(self, job: Job) -> NucloraError | None:
        """Find the nuclei of an image; why it could not be read, if so."""
        return self._images.read(job) or self._images.find()

    def write_image(self, output: str, path: Path) -> list[int]:
        """Write what was found last in one format; its stamp."""
        return self._images.write(output, path)

    def image_row(self) -> Row:
        """What the summary says of what was found last."""
        return self._images.row()

    def plan_slide(self, job: Job, root: Path) -> tuple[int, list[int]]:
        """How many blocks show tissue, and which of them are still to be done."""
        work = self._work(job, root, overwrite=self._how.overwrite)
        work.parts.begin()
        shown = _shown(work)
        return len(shown), [index for index in shown if index not in work.parts]

    def find_blocks(self, job: Job, root: Path, run: Sequence[int]) -> float:
        """Find and keep the nuclei of some blocks; the most memory that this process has held so far, in megabytes."""
        work = self._work(job, root)
        blocks = [work.blocks[index] for index in run]
        predict_blocks(work.canvas, blocks, work.tissue, self._images.predictor(), self._how.settings, work.parts)
        return peak_mb()

    def write_slide(self, job: Job, root: Path, output: str, path: Path) -> list[int]:
        """Write an output of a slide; its stamp."""
        work = self._work(job, root)
        _await(work)
        return work.write(output, path)

    def slide_row(self, job: Job, root: Path, writing: float) -> Row:
        """What the summary says of a slide whose outputs took so many seconds."""
        return self._work(job, root).row(writing)

    def _work(self, job: Job, root: Path, *, overwrite: bool = False) -> SlideWork:
        if self._slide is None or self._slide[0] != job:
            self._slide = None
            self._open.close()
            lattice = self._images.predictor().lattice
            work = self._open.enter_context(open_work(job, root, self._how.slides, lattice, overwrite=overwrite))
            self._slide = job, work
        return self._slide[1]


def _shown(work: SlideWork) -> list[int]:
    return [block.index for block in work.blocks if has_tissue(block, work.tissue)]


def _await(work: SlideWork) -> None:
    """Wait until the parts that other machines have written are to be seen here."""
    parts, shown = work.parts, _shown(work)
    deadline = time.monotonic() + _PATIENCE
    while missing := [index for index in shown if index not in parts]:
        if time.monotonic() > deadline:
            raise NucloraError(
                f"{len(missing)} of {len(shown)} blocks that were written are not to be seen",
                path=parts.root,
                mend="put -o on storage that all machines of the cluster share",
            )
        time.sleep(1)
