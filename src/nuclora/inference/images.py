"""From image files to files of their nuclei: the work of `nuclora predict`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nuclora.errors import NucloraError
from nuclora.extras import require
from nuclora.inference.canvas import Region, SlideOptions
from nuclora.inference.engine import Engine, LocalEngine, NamedProgress, Progress
from nuclora.inference.image_files import ImageFile, find_images
from nuclora.inference.jobs import How, parts_made_from, require_slides
from nuclora.inference.loading import BACKENDS, Backend, load_model, require_precision, rest_of_int8, usual_device
from nuclora.inference.outputs import FORMATS, USUAL, OutputFolder, Row, open_outputs
from nuclora.inference.parts import refuse_other_parts
from nuclora.inference.provenance import choose_settings, identify_adapter
from nuclora.io.microns import require_plausible
from nuclora.models.adapter import read_card, shipped_adapter
from nuclora.models.precision import PRECISIONS, Precision


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
        backend: What runs the network, see :func:`nuclora.inference.loading.load_model`.
        recursive: Look into the folders of folders too.
        overwrite: Make all outputs anew, and replace what they were made from before.
        progress: Called with the number of images done and of all to do; first with none done.
        block_progress: Called with a slide's name and the number of its blocks done and of all.
        engine: Who does the work; by default this process, one image after the other.

    Raises:
        NucloraError: No such input, adapter, format, precision or backend, one that does not go with the other or with
            this machine, or microns that are not plausible; or the folder holds outputs that were made differently.
    """
    for choice, known in ((precision, PRECISIONS), (backend, BACKENDS)):
        if choice not in known:
            raise NucloraError(f"no such choice: {choice}", mend=f"choose one of {', '.join(known)}")
    # Before a folder is made. What machines a cluster has, its workers will see.
    is_here = engine is None or isinstance(engine, LocalEngine)
    require_precision(precision, backend, usual_device() if is_here else None)
    if unknown := [name for name in formats if name not in FORMATS] or ([] if formats else ["(none)"]):
        raise NucloraError(f"no such format: {', '.join(unknown)}", mend=f"choose from {','.join(FORMATS)}")
    require_plausible(microns_per_pixel)
    if "parquet" in formats:
        # Before hours of work, and not after.
        require("pyarrow", "--format parquet")
    if "zarr" in formats:
        require("zarr", "--format zarr")
    images = find_images(inputs, recursive=recursive)
    if region or not tissue_mask:
        require_slides(images)
    model = adapter or shipped_adapter()
    card = read_card(model)
    settings = choose_settings(model, card, views, min_size)
    made_by = {
        "adapter": identify_adapter(model, card),
        "settings": settings.model_dump(mode="json", include={"min_size", "decode"}),
        "precision": f"int8 and {rest_of_int8()}" if precision == "int8" and is_here else precision,
        "backend": backend,
        "microns_per_pixel": microns_per_pixel,
    }
    how = How(
        made_by,
        # A worker of a cluster loads it for itself.
        functools.partial(load_model, model, weights=weights, precision=precision, backend=backend, prompts=False),
        tuple(formats),
        settings,
        microns_per_pixel,
        SlideOptions(microns_per_pixel, card.microns_per_pixel, region, not tissue_mask),
        overwrite,
    )
    with open_outputs(out, overwrite=overwrite) as folder:
        return predict_images(
            images, folder, how, progress=progress, block_progress=block_progress, engine=engine or LocalEngine()
        )


def predict_images(
    images: Sequence[ImageFile],
    folder: OutputFolder,
    how: How,
    *,
    engine: Engine,
    progress: Progress | None = None,
    block_progress: NamedProgress | None = None,
) -> Outcome:
    """Predict images into a folder that is held, going on from what it has.

    Args:
        images: The images, each name once.
        folder: Where the outputs go.
        how: How they are predicted.
        engine: Who does the work.
        progress: As in :func:`predict_files`.
        block_progress: As in :func:`predict_files`.
    """
    outcome = Outcome(folder.root)
    named = []
    for image in images:
        try:
            folder.refuse_name(image)
            named.append(image)
        except NucloraError as error:
            outcome.failures.append(error)
    jobs = engine.find_jobs(named, folder, how, outcome.failures)
    work = []
    for job in jobs:
        if how.overwrite or not folder.is_done(job.image, job.sha256, job.made_by, how.formats):
            work.append(job)
        else:
            outcome.kept.add(str(job.image.path))
            folder.drop_parts(job.image.name)
    for job in work:
        if not how.overwrite:
            folder.refuse_conflict(job.image, job.sha256, job.made_by)
            if job.is_slide:
                refuse_other_parts(folder.parts(job.image.name), parts_made_from(job))
    failed: dict[str, NucloraError] = {}
    try:
        if work:
            failed = engine.predict(work, folder, how, progress, block_progress)
    finally:
        # A cluster's workers end in any order.
        folder.arrange([job.image.name for job in jobs])
        folder.write_summary()
    outcome.failures.extend(failed[job.image.name] for job in work if job.image.name in failed)
    for job in jobs:
        row = folder.records[job.image.name].row if job.image.name not in failed else None
        if row is not None:
            # It may lie elsewhere than when its row was written.
            outcome.rows.append(replace(row, image=str(job.image.path)))
    known = how.slides.adapters_microns
    done = [job for job in jobs if job.image.name not in failed]
    if known is None and any(job.is_slide or how.microns_per_pixel for job in done):
        outcome.notes.append("not rescaled: the adapter does not say at how many microns per pixel it was trained")
    elif known is not None and how.microns_per_pixel is None and not all(job.is_slide for job in done):
        outcome.notes.append(f"images are taken for {known:g} microns per pixel: --mpp where they are not")
    return outcome
