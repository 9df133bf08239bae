"""One image: read, its nuclei found, its outputs written."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuclora.data.images import read_image
from nuclora.errors import NucloraError
from nuclora.inference.image_files import ImageFile
from nuclora.inference.jobs import How, Job, failure_of
from nuclora.inference.outputs import Row, stamp_of
from nuclora.inference.predictor import Nuclei, Predictor
from nuclora.inference.scale import require_room
from nuclora.io.coco import nucleus_annotations, write_coco
from nuclora.io.geojson import write_geojson
from nuclora.io.labels import write_labels
from nuclora.io.overlay import write_overlay
from nuclora.io.parquet import write_parquet
from nuclora.io.tables import measure_nuclei, write_columns
from nuclora.io.zarr import Grid, Read, write_zarr


class ImageWorker:
    """Predicts images, one at a time: read, find, write.

    Args:
        how: How.
    """

    def __init__(self, how: How) -> None:
        self.how = how
        self._predictor: Predictor | None = None
        self._job: Job | None = None
        self._pixels = np.empty((0, 0, 3), dtype=np.uint8)
        self._found: ImageNuclei | None = None
        self._began = 0.0

    def predictor(self) -> Predictor:
        """The model; loaded when it is first asked for."""
        self._predictor = self._predictor or self.how.load()
        return self._predictor

    def read(self, job: Job) -> NucloraError | None:
        """Read an image; why that cannot be, if so."""
        try:
            self._pixels = read_image(job.image.path)
            require_room(self._pixels.shape[:2], self.how.image_scale)
        except NucloraError as error:
            return NucloraError(error.reason, path=job.image.path, mend=error.mend)
        except Exception as error:
            return failure_of(job, error)
        self._job = job
        return None

    def find(self) -> NucloraError | None:
        """Find the nuclei of the image that was read; why that cannot be, if so."""
        assert self._job is not None
        predictor = self.predictor()
        self._began = time.monotonic()
        try:
            nuclei = predictor.nuclei(self._pixels, self.how.settings, mpp=self.how.microns_per_pixel)
        except Exception as error:
            return failure_of(self._job, error)
        self._found = ImageNuclei(self._job.image.path.name, self._pixels, nuclei, self.how.microns_per_pixel)
        return None

    def write(self, output: str, path: Path) -> list[int]:
        """Write what was found into a file of one format; the file's stamp."""
        assert self._found is not None
        write_output(path, output, self._found)
        return stamp_of(path)

    def row(self) -> Row:
        """What the summary says of it, once all is written."""
        assert self._job is not None
        assert self._found is not None
        return _row(self._job.image, self._found.nuclei, time.monotonic() - self._began)


@dataclass(frozen=True)
class ImageNuclei:
    """What was found in an image.

    Attributes:
        file_name: Of the image.
        image: RGB, (H, W, 3).
        nuclei: Its nuclei.
        microns_per_pixel: Of the image, where known.
    """

    file_name: str
    image: NDArray[np.uint8]
    nuclei: Nuclei
    microns_per_pixel: float | None

    @functools.cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """The nuclei's measurements, taken once for all tables, see :func:`nuclora.io.tables.measure_nuclei`."""
        return measure_nuclei(self.image, self.nuclei.labels, self.nuclei.scores, self.microns_per_pixel)


def write_output(path: Path, output: str, found: ImageNuclei) -> None:
    """Write one output of one image, atomically.

    Args:
        path: The file or folder.
        output: One of :data:`nuclora.inference.outputs.FORMATS`.
        found: The image and its nuclei.

    Raises:
        NucloraError: The disk is full.
    """
    image, (labels, scores) = found.image, found.nuclei
    height, width = labels.shape
    if output == "labels":
        write_labels(path, labels)
    elif output == "overlay":
        write_overlay(path, image, labels)
    elif output == "geojson":
        write_geojson(path, labels, scores, found.microns_per_pixel)
    elif output == "coco":
        write_coco(path, found.file_name, (height, width), nucleus_annotations(labels, scores))
    elif output == "zarr":
        grid = Grid(height, width, found.microns_per_pixel)
        write_zarr(path, found.file_name, grid, _reader(image), _reader(labels))
    elif output == "table":
        write_columns(path, found.columns)
    else:
        write_parquet(path, [found.columns])


def _reader(pixels: NDArray[Any]) -> Read:
    return lambda rows, columns: pixels[rows.start : rows.stop, columns.start : columns.stop]


def _row(image: ImageFile, nuclei: Nuclei, seconds: float) -> Row:
    height, width = nuclei.labels.shape
    count = len(nuclei.scores)
    area = float(np.count_nonzero(nuclei.labels)) / count if count else None
    return Row(str(image.path), width, height, count, area, seconds)
