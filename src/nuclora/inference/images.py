"""From image files to files of their nuclei: the work of `nuclora predict`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuclora.data.images import read_image
from nuclora.errors import NucloraError
from nuclora.inference.canvas import Region
from nuclora.inference.image_files import ImageFile, find_images
from nuclora.inference.jobs import Job, find_jobs, require_slides
from nuclora.inference.outputs import FORMATS, USUAL, OutputFolder, Row, open_outputs
from nuclora.inference.parts import remove_parts
from nuclora.inference.predictor import Nuclei, Precision, Predictor, load_model
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
    recursive: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    block_progress: NamedProgress | None = None,
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
        recursive: Look into the folders of folders too.
        overwrite: Make all outputs anew, and replace what they were made from before.
        progress: Called with the number of images done and of all to do; first with none done.
        block_progress: Called with a slide's name and the number of its blocks done and of all.

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
        "microns_per_pixel": microns_per_pixel,
    }
    slides = SlideOptions(microns_per_pixel, card.microns_per_pixel, region, not tissue_mask)
    with open_outputs(out) as folder:
        return predict_images(
            images,
            folder,
            made_by=made_by,
            load=lambda: load_model(model, weights=weights, precision=precision, prompts=False),
            formats=formats,
            settings=settings,
            microns_per_pixel=microns_per_pixel,
            slides=slides,
            overwrite=overwrite,
            progress=progress,
            block_progress=block_progress,
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
    """
    outcome = Outcome(folder.root)
    options = slides or SlideOptions(microns_per_pixel)
    jobs = list(find_jobs(images, made_by, options, outcome.failures))
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
    worker = _Worker(folder, load, formats, settings, microns_per_pixel, options, overwrite, block_progress)
    failed = set()
    try:
        for count, job in enumerate(work):
            if progress and count == 0:
                progress(0, len(work))
            if failure := worker.predict(job):
                outcome.failures.append(failure)
                failed.add(job.image.name)
            if progress:
                progress(count + 1, len(work))
    finally:
        folder.write_summary()
    done = (folder.records[job.image.name].row for job in jobs if job.image.name not in failed)
    outcome.rows.extend(row for row in done if row is not None)
    if options.adapters_microns is None and any(job.is_slide for job in jobs):
        outcome.notes.append("not rescaled: the adapter does not say at how many microns per pixel it was trained")
    return outcome


@dataclass
class _Worker:
    """What all images are predicted with; the model is loaded for the first that can be read."""

    folder: OutputFolder
    load: Callable[[], Predictor]
    formats: Sequence[str]
    settings: EvaluateSettings
    microns_per_pixel: float | None
    slides: SlideOptions
    overwrite: bool
    block_progress: NamedProgress | None
    _predictor: Predictor | None = None

    def predict(self, job: Job) -> NucloraError | None:
        """Predict one image; why it could not be read, if so."""
        path = job.image.path
        try:
            pixels = None if job.is_slide else read_image(path)
        except NucloraError as error:
            return error
        self._predictor = self._predictor or self.load()
        try:
            if pixels is None:
                self._predict_slide(job, self._predictor)
            else:
                self._predict_pixels(job, pixels, self._predictor)
        except NucloraError as error:
            if error.path is None:
                raise NucloraError(error.reason, path=path, mend=error.mend) from error
            if job.is_slide and error.path == path:
                return error
            raise
        return None

    def _predict_pixels(self, job: Job, pixels: NDArray[np.uint8], predictor: Predictor) -> None:
        started = time.monotonic()
        nuclei = predictor.nuclei(pixels, self.settings)
        wanted = self.folder.begin(job.image, job.sha256, job.made_by, self.formats)
        for output in wanted:
            path = self.folder.path(job.image.name, output)
            write_output(path, output, job.image.path.name, pixels, nuclei, self.microns_per_pixel)
        self.folder.finish(job.image.name, wanted, _row(job.image, nuclei, time.monotonic() - started))

    def _predict_slide(self, job: Job, predictor: Predictor) -> None:
        name = job.image.name
        predict_slide(
            job.image,
            self.folder,
            sha256=job.sha256,
            made_by=job.made_by,
            predictor=predictor,
            formats=self.formats,
            settings=self.settings,
            options=self.slides,
            overwrite=self.overwrite,
            progress=functools.partial(self.block_progress, name) if self.block_progress else None,
        )


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
