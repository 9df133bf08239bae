"""From image files to files of their nuclei: the work of `nuclora predict`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nuclora.data.images import read_image
from nuclora.errors import NucloraError
from nuclora.inference.canvas import Region
from nuclora.inference.image_files import ImageFile, find_images
from nuclora.inference.jobs import Job, find_jobs, require_slides
from nuclora.inference.outputs import FORMATS, USUAL, OutputFolder, Row, open_outputs
from nuclora.inference.parts import remove_parts
from nuclora.inference.predictor import Backend, Nuclei, Precision, Predictor, load_model
from nuclora.inference.provenance import choose_settings, identify_adapter
from nuclora.inference.slides import SlideOptions, predict_slide
from nuclora.io.coco import nucleus_annotations, write_coco
from nuclora.io.geojson import write_geojson
from nuclora.io.labels import write_labels
from nuclora.io.overlay import write_overlay
from nuclora.io.parquet import require_parquet, write_parquet
from nuclora.io.tables import measure_nuclei, write_columns
from nuclora.io.zarr import Grid, Read, require_zarr, write_zarr
from nuclora.models.adapter import read_card, shipped_adapter
from nuclora.recipe import EvaluateSettings

Progress = Callable[[int, int], None]
NamedProgress = Callable[[str, int, int], None]


@dataclass
class Outcome:
    """What came of a prediction.

    Attributes:
        out: Folder of the outputs.
        rows: A row for each image, in the order asked for; those that could not be read are left out.
        kept: Files of images whose outputs were there already.
        failures: Why the other images could not be read.
        notes: What else is to be said.
    """

    out: Path
    rows: list[Row] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    failures: list[NucloraError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def predict_files(
    inputs: Sequence[str | Path],
    out: Path,
    adapter: Path | None = None,
    *,
    formats: Sequence[str] = USUAL,
    views: int | None = None,
    min_size: int | None = None,
    microns_per_pixel: float | None = None,
    region: Region | None = None,
    tissue_mask: bool = True,
    weights: Path | None = None,
    precision: Precision = "no",
    backend: Backend = "torch",
    recursive: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    block_progress: NamedProgress | None = None,
    engine: Engine | None = None,
) -> Outcome:
    """Find the nuclei of images, and write them down.

    Images whose outputs are there, made by the same adapter and settings, are skipped: an interrupted prediction that
    is taken up again goes on. An image that cannot be read does not stop the others.

    Args:
        inputs: Image files, folders and globs, see :func:`nuclora.inference.image_files.find_images`.
        out: Folder of the outputs, see :mod:`nuclora.inference.outputs`.
        adapter: Folder of an adapter with a dense decoder; by default the one that nuclora carries.
        formats: Which of :data:`nuclora.inference.outputs.FORMATS` to write.
        views: How many flips and quarter turns are averaged; by default the adapter's choice.
        min_size: Smallest nucleus in pixels; by default the adapter's choice.
        microns_per_pixel: Of the images; where known, measurements are given in microns too. Of slides it is looked
            for in the file by default, and they are resampled to what the adapter knows.
        region: A rectangle of slides, in pixels of level 0; by default all of them.
        tissue_mask: Look for nuclei on the tissue of slides only.
        weights: The base's weights; by default they are looked for.
        precision: `bf16` or `fp16` computes in it where that is safe.
        backend: What runs the network, see :func:`nuclora.inference.predictor.load_model`.
        recursive: Look into the folders of folders too.
        overwrite: Make all outputs anew, and replace what they were made from before.
        progress: Called with the number of images done and of all to do; first with none done.
        block_progress: Called with a slide's name and the number of its blocks done and of all.
        engine: Who does the work; by default this process, one image after the other.

    Raises:
        NucloraError: No such input, adapter or format; or the folder holds outputs that were made differently.
    """
    if unknown := [name for name in formats if name not in FORMATS] or ([] if formats else ["(none)"]):
        raise NucloraError(f"no such format: {', '.join(unknown)}", mend=f"choose from {','.join(FORMATS)}")
    if "parquet" in formats:
        # Before hours of work, and not after.
        require_parquet()
    if "zarr" in formats:
        require_zarr()
    images = find_images(inputs, recursive=recursive)
    if region or not tissue_mask:
        require_slides(images)
    model = adapter or shipped_adapter()
    card = read_card(model)
    settings = choose_settings(model, card, views, min_size)
    made_by = {
        "adapter": identify_adapter(model, card),
        "settings": settings.model_dump(mode="json", include={"min_size", "decode"}),
        "precision": precision,
        "backend": backend,
        "microns_per_pixel": microns_per_pixel,
    }
    slides = SlideOptions(microns_per_pixel, card.microns_per_pixel, region, not tissue_mask)
    with open_outputs(out) as folder:
        return predict_images(
            images,
            folder,
            made_by=made_by,
            load=lambda: load_model(model, weights=weights, precision=precision, backend=backend, prompts=False),
            formats=formats,
            settings=settings,
            microns_per_pixel=microns_per_pixel,
            slides=slides,
            overwrite=overwrite,
            progress=progress,
            block_progress=block_progress,
            engine=engine,
        )


def predict_images(
    images: Sequence[ImageFile],
    folder: OutputFolder,
    *,
    made_by: dict[str, Any],
    load: Callable[[], Predictor],
    formats: Sequence[str],
    settings: EvaluateSettings,
    microns_per_pixel: float | None = None,
    slides: SlideOptions | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    block_progress: NamedProgress | None = None,
    engine: Engine | None = None,
) -> Outcome:
    """Predict images into a folder that is held, going on from what it has.

    Args:
        images: The images, each name once.
        folder: Where the outputs go.
        made_by: What tells this adapter and these settings from others; JSON values only.
        load: Loads the model; called only where there is something to do.
        formats: As in :func:`predict_files`.
        settings: How to segment.
        microns_per_pixel: As in :func:`predict_files`.
        slides: How slides are taken.
        overwrite: As in :func:`predict_files`.
        progress: As in :func:`predict_files`.
        block_progress: As in :func:`predict_files`.
        engine: As in :func:`predict_files`.
    """
    outcome = Outcome(folder.root)
    options = slides or SlideOptions(microns_per_pixel)
    how = How(folder.root, load, tuple(formats), settings, microns_per_pixel, options, overwrite)
    engine = engine or LocalEngine()
    jobs = engine.find_jobs(images, made_by, how, outcome.failures)
    work = []
    for job in jobs:
        if overwrite or not folder.is_done(job.image, job.sha256, job.made_by, formats):
            work.append(job)
        else:
            outcome.kept.add(str(job.image.path))
            # A kill may have come between a slide's last output and the end of its parts.
            remove_parts(folder.parts(job.image.name))
    for job in work if not overwrite else ():
        folder.refuse_conflict(job.image, job.sha256, job.made_by)
    failed: dict[str, NucloraError] = {}
    try:
        if work:
            failed = engine.predict(work, folder, how, progress, block_progress)
    finally:
        folder.write_summary()
    outcome.failures.extend(failed[job.image.name] for job in work if job.image.name in failed)
    done = (folder.records[job.image.name].row for job in jobs if job.image.name not in failed)
    outcome.rows.extend(row for row in done if row is not None)
    if options.adapters_microns is None and any(job.is_slide for job in jobs):
        outcome.notes.append("not rescaled: the adapter does not say at how many microns per pixel it was trained")
    return outcome


@dataclass(frozen=True)
class How:
    """How all images of a prediction are predicted; goes to the workers of a cluster.

    Attributes:
        root: Folder of the outputs.
        load: Loads the model.
        formats: The outputs asked for.
        settings: How to segment.
        microns_per_pixel: Of images.
        slides: How slides are taken.
        overwrite: As in :func:`predict_files`.
    """

    root: Path
    load: Callable[[], Predictor]
    formats: tuple[str, ...]
    settings: EvaluateSettings
    microns_per_pixel: float | None
    slides: SlideOptions
    overwrite: bool


class Engine(Protocol):
    """Who does the work of a prediction."""

    def find_jobs(
        self, images: Sequence[ImageFile], made_by: dict[str, Any], how: How, failures: list[NucloraError]
    ) -> list[Job]:
        """As :func:`nuclora.inference.jobs.find_jobs`."""
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
    """One image after the other, in this process."""

    def find_jobs(
        self, images: Sequence[ImageFile], made_by: dict[str, Any], how: How, failures: list[NucloraError]
    ) -> list[Job]:
        return list(find_jobs(images, made_by, how.slides, failures))

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
                failure = self._predict(job, folder, worker, worker.predictor(), block_progress)
            if failure is not None:
                failed[job.image.name] = failure
            if progress:
                progress(count + 1, len(jobs))
        return failed

    def _predict(
        self,
        job: Job,
        folder: OutputFolder,
        worker: ImageWorker,
        predictor: Predictor,
        block_progress: NamedProgress | None,
    ) -> NucloraError | None:
        how = worker.how
        try:
            if job.is_slide:
                predict_slide(
                    job.image,
                    folder,
                    sha256=job.sha256,
                    made_by=job.made_by,
                    predictor=predictor,
                    formats=how.formats,
                    settings=how.settings,
                    options=how.slides,
                    overwrite=how.overwrite,
                    progress=functools.partial(block_progress, job.image.name) if block_progress else None,
                )
            else:
                worker.find()
                wanted = folder.begin(job.image, job.sha256, job.made_by, how.formats)
                row = worker.write({output: folder.path(job.image.name, output) for output in wanted})
                folder.finish(job.image.name, wanted, row)
        except NucloraError as error:
            return failure_of(job, error)
        return None


class ImageWorker:
    """Predicts images, one at a time: read, find, write.

    Args:
        how: How.
    """

    def __init__(self, how: How) -> None:
        self.how = how
        self._predictor: Predictor | None = None
        self._image: ImageFile | None = None
        self._pixels = np.empty((0, 0, 3), dtype=np.uint8)
        self._nuclei: Nuclei | None = None
        self._began = 0.0

    def predictor(self) -> Predictor:
        """The model; loaded when it is first asked for."""
        self._predictor = self._predictor or self.how.load()
        return self._predictor

    def read(self, job: Job) -> NucloraError | None:
        """Read an image; why that cannot be, if so."""
        try:
            self._pixels = read_image(job.image.path)
        except NucloraError as error:
            return error
        self._image = job.image
        return None

    def find(self) -> None:
        """Find the nuclei of the image that was read."""
        predictor = self.predictor()
        self._began = time.monotonic()
        self._nuclei = predictor.nuclei(self._pixels, self.how.settings)

    def write(self, paths: Mapping[str, Path]) -> Row:
        """Write what was found into files by format; what the summary says of it."""
        assert self._image is not None
        assert self._nuclei is not None
        image, nuclei = self._image, self._nuclei
        for output, path in paths.items():
            write_output(path, output, image.path.name, self._pixels, nuclei, self.how.microns_per_pixel)
        return _row(image, nuclei, time.monotonic() - self._began)


def failure_of(job: Job, error: NucloraError) -> NucloraError:
    """The error of a slide that cannot be read, which stops no other image.

    Raises:
        NucloraError: It is another one; with the image's path where it names none.
    """
    if error.path is None:
        raise NucloraError(error.reason, path=job.image.path, mend=error.mend) from error
    if job.is_slide and error.path == job.image.path:
        return error
    raise error


def write_output(
    path: Path, output: str, file_name: str, image: NDArray[np.uint8], nuclei: Nuclei, microns_per_pixel: float | None
) -> None:
    """Write one output of one image, atomically.

    Args:
        path: The file or folder.
        output: One of :data:`nuclora.inference.outputs.FORMATS`.
        file_name: Of the image.
        image: RGB, (H, W, 3).
        nuclei: What was found in it.
        microns_per_pixel: Of the image, where known.
    """
    if output == "labels":
        write_labels(path, nuclei.labels)
    elif output == "overlay":
        write_overlay(path, image, nuclei.labels)
    elif output == "geojson":
        write_geojson(path, nuclei.labels, nuclei.scores, microns_per_pixel)
    elif output == "coco":
        write_coco(path, file_name, (image.shape[0], image.shape[1]), nucleus_annotations(nuclei.labels, nuclei.scores))
    elif output == "zarr":
        grid = Grid(image.shape[0], image.shape[1], microns_per_pixel)
        write_zarr(path, file_name, grid, _reader(image), _reader(nuclei.labels))
    else:
        measured = measure_nuclei(image, nuclei.labels, nuclei.scores, microns_per_pixel)
        if output == "table":
            write_columns(path, measured)
        else:
            write_parquet(path, [measured])


def _reader(pixels: NDArray[Any]) -> Read:
    return lambda rows, columns: pixels[rows.start : rows.stop, columns.start : columns.stop]


def _row(image: ImageFile, nuclei: Nuclei, seconds: float) -> Row:
    height, width = nuclei.labels.shape
    count = len(nuclei.scores)
    area = float(np.count_nonzero(nuclei.labels)) / count if count else None
    return Row(str(image.path), width, height, count, area, seconds)
