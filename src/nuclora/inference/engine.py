"""Who does the work of a prediction: this process, or as :class:`nuclora.scale.prediction.RayEngine`, a cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

from nuclora.errors import NucloraError
from nuclora.inference.hashes import read_hash
from nuclora.inference.image_files import ImageFile
from nuclora.inference.image_worker import ImageWorker
from nuclora.inference.jobs import How, Job, failure_of, make_job
from nuclora.inference.outputs import OutputFolder
from nuclora.inference.slides import predict_slide

Progress = Callable[[int, int], None]
NamedProgress = Callable[[str, int, int], None]


class Engine(Protocol):
    """Who does the work of a prediction."""

    def find_jobs(
        self, images: Sequence[ImageFile], folder: OutputFolder, how: How, failures: list[NucloraError]
    ) -> list[Job]:
        """What is to be done for each image, in their order; why slides cannot be opened is added to the failures."""
        ...

    def predict(
        self,
        jobs: Sequence[Job],
        folder: OutputFolder,
        how: How,
        progress: Progress | None,
        block_progress: NamedProgress | None,
    ) -> dict[str, NucloraError]:
        """Predict images, and note them in the folder; why some could not be read, by their names."""
        ...


class LocalEngine:
    """One image after the other, in this process.

    Args:
        check: Called before each image is looked at; raises where the work is to stop.
    """

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self._check = check

    def find_jobs(
        self, images: Sequence[ImageFile], folder: OutputFolder, how: How, failures: list[NucloraError]
    ) -> list[Job]:
        jobs = []
        for image in images:
            self._check()
            sha256 = None if how.overwrite else folder.hashes.recall(image.path)
            if sha256 is None:
                hashed = read_hash(image.path)
                folder.hashes.add(image.path, hashed)
                sha256 = hashed.sha256
            try:
                jobs.append(make_job(image, sha256, how))
            except NucloraError as error:
                failures.append(error)
        return jobs

    def predict(
        self,
        jobs: Sequence[Job],
        folder: OutputFolder,
        how: How,
        progress: Progress | None,
        block_progress: NamedProgress | None,
    ) -> dict[str, NucloraError]:
        worker = ImageWorker(how)
        failed: dict[str, NucloraError] = {}
        for count, job in enumerate(jobs):
            if progress and count == 0:
                progress(0, len(jobs))
            failure = None if job.is_slide else worker.read(job)
            if failure is None:
                # Before what is told of the image: an adapter that cannot be loaded is not its fault.
                worker.predictor()
                failure = _predict(job, folder, worker, block_progress)
            if failure is not None:
                failed[job.image.name] = failure
            if progress:
                progress(count + 1, len(jobs))
        return failed


def _predict(
    job: Job, folder: OutputFolder, worker: ImageWorker, block_progress: NamedProgress | None
) -> NucloraError | None:
    """Predict an image that was read, or a slide; why it cannot be read, if so."""
    name = job.image.name
    try:
        if job.is_slide:
            told = functools.partial(block_progress, name) if block_progress else None
            predict_slide(job, folder, worker.how, worker.predictor(), told)
        else:
            if failure := worker.find():
                return failure
            wanted = folder.begin(job.image, job.sha256, job.made_by, worker.how.formats)
            for output in wanted:
                folder.wrote(name, output, worker.write(output, folder.path(name, output)))
            folder.finish(name, wanted, worker.row())
    except Exception as error:
        return failure_of(job, error)
    return None
