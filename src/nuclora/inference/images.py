"""From image files to files of their nuclei: the work of `nuclora predict`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuclora.data.images import read_image
from nuclora.errors import NucloraError
from nuclora.inference.image_files import ImageFile, find_images
from nuclora.inference.outputs import FORMATS, OutputFolder, Row, open_outputs
from nuclora.inference.predictor import Nuclei, Precision, Predictor, load_model
from nuclora.io.geojson import write_geojson
from nuclora.io.labels import write_labels
from nuclora.io.overlay import write_overlay
from nuclora.io.tables import measure_nuclei, write_columns
from nuclora.models.adapter import CARD, CONFIG, AdapterCard, read_card, read_recipe, shipped_adapter, tuned_settings
from nuclora.recipe import EvaluateSettings, change_evaluation

Progress = Callable[[int, int], None]


@dataclass
class Outcome:
    """What came of a prediction.

    Attributes:
        out: Folder of the outputs.
        rows: A row for each image, in the order asked for; those that could not be read are left out.
        kept: Files of images whose outputs were there already.
        failures: Why the other images could not be read.
    """

    out: Path
    rows: list[Row] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    failures: list[NucloraError] = field(default_factory=list)


def predict_files(
    inputs: Sequence[str | Path],
    out: Path,
    adapter: Path | None = None,
    *,
    formats: Sequence[str] = tuple(FORMATS),
    views: int | None = None,
    min_size: int | None = None,
    microns_per_pixel: float | None = None,
    weights: Path | None = None,
    precision: Precision = "no",
    recursive: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
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
        microns_per_pixel: Of the images; where known, measurements are given in microns too.
        weights: The base's weights; by default they are looked for.
        precision: `bf16` or `fp16` computes in it where that is safe.
        recursive: Look into the folders of folders too.
        overwrite: Make all outputs anew, and replace what they were made from before.
        progress: Called with the number of images done and of all to do; first with none done.

    Raises:
        NucloraError: No such input, adapter or format; or the folder holds outputs that were made differently.
    """
    if unknown := [name for name in formats if name not in FORMATS] or ([] if formats else ["(none)"]):
        raise NucloraError(f"no such format: {', '.join(unknown)}", mend=f"choose from {','.join(FORMATS)}")
    images = find_images(inputs, recursive=recursive)
    model = adapter or shipped_adapter()
    card = read_card(model)
    settings = _settings(model, card, views, min_size)
    made_by = {
        "adapter": _identity(model, card),
        "settings": settings.model_dump(mode="json", include={"min_size", "decode"}),
        "precision": precision,
        "microns_per_pixel": microns_per_pixel,
    }
    with open_outputs(out) as folder:
        return predict_images(
            images,
            folder,
            made_by=made_by,
            load=lambda: load_model(model, weights=weights, precision=precision),
            formats=formats,
            settings=settings,
            microns_per_pixel=microns_per_pixel,
            overwrite=overwrite,
            progress=progress,
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
    overwrite: bool = False,
    progress: Progress | None = None,
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
        overwrite: As in :func:`predict_files`.
        progress: As in :func:`predict_files`.
    """
    hashes = {image.name: _hash(image.path) for image in images}
    outcome = Outcome(folder.root)
    work = []
    for image in images:
        if overwrite or not folder.is_done(image, hashes[image.name], made_by, formats):
            work.append(image)
        else:
            outcome.kept.add(str(image.path))
    for image in work if not overwrite else ():
        folder.refuse_conflict(image, hashes[image.name], made_by)
    failed = set()
    predictor: Predictor | None = None
    try:
        for count, image in enumerate(work):
            if progress and count == 0:
                progress(0, len(work))
            try:
                pixels = read_image(image.path)
            except NucloraError as error:
                outcome.failures.append(error)
                failed.add(image.name)
            else:
                predictor = predictor or load()
                started = time.monotonic()
                try:
                    nuclei = predictor.nuclei(pixels, settings)
                except NucloraError as error:
                    raise NucloraError(error.reason, path=image.path, mend=error.mend) from error
                wanted = folder.begin(image, hashes[image.name], made_by, formats)
                for output in wanted:
                    write_output(folder.path(image.name, output), output, pixels, nuclei, microns_per_pixel)
                row = _row(image, nuclei, time.monotonic() - started)
                folder.finish(image.name, wanted, row)
            if progress:
                progress(count + 1, len(work))
    finally:
        folder.write_summary()
    done = (folder.records[image.name].row for image in images if image.name not in failed)
    outcome.rows.extend(row for row in done if row is not None)
    return outcome


def write_output(
    path: Path, output: str, image: NDArray[np.uint8], nuclei: Nuclei, microns_per_pixel: float | None
) -> None:
    """Write one output of one image, atomically.

    Args:
        path: The file.
        output: One of :data:`nuclora.inference.outputs.FORMATS`.
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
    else:
        write_columns(path, measure_nuclei(image, nuclei.labels, nuclei.scores, microns_per_pixel))


def _row(image: ImageFile, nuclei: Nuclei, seconds: float) -> Row:
    height, width = nuclei.labels.shape
    count = len(nuclei.scores)
    area = float(np.count_nonzero(nuclei.labels)) / count if count else None
    return Row(str(image.path), width, height, count, area, seconds)


def _settings(adapter: Path, card: AdapterCard, views: int | None, min_size: int | None) -> EvaluateSettings:
    recipe = read_recipe(adapter, card)
    if recipe.dense is None:
        raise NucloraError(
            f"its recipe, {recipe.name}, trains no decoder that finds nuclei by itself",
            path=adapter,
            mend="name an adapter of the recipe nuclora with -a",
        )
    changes = {"min_size": min_size, "decode.views": views}
    fields = [f"evaluate.{name}={value}" for name, value in changes.items() if value is not None]
    return change_evaluation(tuned_settings(card, recipe), fields)


def _identity(adapter: Path, card: AdapterCard) -> dict[str, str]:
    """What tells one adapter from another wherever its files lie."""
    digest = hashlib.sha256()
    for file in (adapter / CARD, adapter / CONFIG, *sorted(adapter.glob("*.safetensors"))):
        digest.update(f"{file.name} {_hash(file)}\n".encode())
    return {"base": card.base, "base_sha256": card.base_sha256, "adapter_sha256": digest.hexdigest()}


def _hash(path: Path) -> str:
    """SHA-256 of a file; empty where it cannot be read, which is told where it is read in earnest."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
