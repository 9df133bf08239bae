"""One slide: block by block to its nuclei, with memory that does not grow with the slide."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from nuclora.data.targets import MAPS, STRIDE
from nuclora.inference.blocks import HALO, STEPS, Block, find_nuclei, plan_blocks
from nuclora.inference.canvas import Canvas, SlideOptions, Tissue, find_tissue, open_canvas
from nuclora.inference.image_files import ImageFile
from nuclora.inference.jobs import How, Job, parts_made_from
from nuclora.inference.outputs import OutputFolder, Row, stamp_of
from nuclora.inference.parts import BLOCKS, Parts
from nuclora.inference.predictor import Maps, Predictor
from nuclora.inference.slide_outputs import (
    write_annotations,
    write_labels,
    write_measurements,
    write_nuclei,
    write_overview,
    write_store,
    write_table,
)
from nuclora.inference.windows import Known
from nuclora.recipe import EvaluateSettings

BlockProgress = Callable[[int, int], None]


def predict_slide(
    job: Job, folder: OutputFolder, how: How, predictor: Predictor, progress: BlockProgress | None = None
) -> None:
    """Find the nuclei of a slide, going on from the blocks that are done, and write them down.

    Args:
        job: The slide.
        folder: Where the outputs go; held.
        how: How it is predicted.
        predictor: The model.
        progress: As in :func:`predict_blocks`.

    Raises:
        NucloraError: The slide is damaged, or the disk is full; what is done stays.
    """
    name = job.image.name
    with open_work(job, folder.parts(name), how.slides, predictor.lattice, overwrite=how.overwrite) as work:
        predict_blocks(work.canvas, work.blocks, work.tissue, predictor, how.settings, work.parts, progress)
        wanted = folder.begin(job.image, job.sha256, job.made_by, how.formats)
        began = time.monotonic()
        for output in wanted:
            folder.wrote(name, output, work.write(output, folder.path(name, output)))
        row = work.row(time.monotonic() - began)
    folder.finish(name, wanted, row)
    work.parts.remove()


@dataclass(frozen=True)
class SlideWork:
    """A slide at work.

    Attributes:
        image: Its file.
        canvas: What of it is predicted, open.
        tissue: Where on it there is tissue.
        blocks: The blocks that it is cut into.
        parts: What is found so far.
    """

    image: ImageFile
    canvas: Canvas
    tissue: Tissue
    blocks: Sequence[Block]
    parts: Parts

    def write(self, output: str, path: Path) -> list[int]:
        """Write an output, once all blocks are done.

        Args:
            output: Its format.
            path: The file or folder.

        Returns:
            Its stamp, see :func:`nuclora.inference.outputs.stamp_of`.

        Raises:
            NucloraError: The disk is full.
        """
        write_output(path, output, self.canvas, self.blocks, self.parts)
        return stamp_of(path)

    def row(self, writing: float) -> Row:
        """What the summary says of it.

        Args:
            writing: How many seconds its outputs took.
        """
        count, area = self.parts.totals()
        seconds = self.parts.seconds() + writing
        mean = area / count if count else None
        region = self.canvas.region
        return Row(str(self.image.path), region.width, region.height, count, mean, seconds, self.tissue.mm2, peak_mb())


@contextlib.contextmanager
def open_work(
    job: Job, root: Path, options: SlideOptions, lattice: tuple[int, int], *, overwrite: bool = False
) -> Iterator[SlideWork]:
    """Open a slide, and what is found of it so far.

    Args:
        job: The slide.
        root: Folder of its parts.
        options: How it is taken.
        lattice: The model's, see :attr:`nuclora.inference.predictor.Predictor.lattice`.
        overwrite: Drop blocks that were made differently.

    Raises:
        NucloraError: The slide is damaged, or there are parts of something else.
    """
    parts = Parts(root, {**parts_made_from(job), BLOCKS: [*STEPS, HALO, *lattice]}, overwrite=overwrite)
    with open_canvas(job.image.path, options) as canvas:
        tissue = find_tissue(canvas, options.everywhere)
        yield SlideWork(job.image, canvas, tissue, list(plan_blocks(canvas.shape, lattice)), parts)


def predict_blocks(
    canvas: Canvas,
    blocks: Sequence[Block],
    tissue: Tissue,
    predictor: Predictor,
    settings: EvaluateSettings,
    parts: Parts,
    progress: BlockProgress | None = None,
) -> None:
    """Find the nuclei of all blocks that show tissue and are not done, and keep them.

    While the model works on one block, one thread reads the next, and another decodes and measures the last.

    Args:
        canvas: What of the slide is predicted.
        blocks: All blocks that it is cut into.
        tissue: Where on it there is tissue. Windows without are not predicted: there is nothing in them.
        predictor: The model.
        settings: How to segment.
        parts: Where to keep what is found.
        progress: Called with the number of blocks done and of all, first with those that were done before.

    Raises:
        NucloraError: The slide is damaged, or the disk is full; blocks that are done stay.
    """
    blocks = [block for block in blocks if has_tissue(block, tissue)]
    missing = [block for block in blocks if block.index not in parts]
    done = len(blocks) - len(missing)
    if progress:
        progress(done, len(blocks))
    known: Known = {}
    last: Future[None] | None = None
    began = time.monotonic()

    def finish(block: Block, maps: Maps, pixels: NDArray[np.uint8]) -> None:
        nonlocal began
        found = find_nuclei(block, maps, pixels, predictor, settings, canvas)
        now = time.monotonic()
        parts.write(block.index, found, now - began)
        began = now

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as finisher:
        for block, pixels in _ahead(reader, missing, lambda block: canvas.read(*block.seen)):
            known = _known(block, known, tissue)
            maps = predictor.maps(pixels, settings.decode.views, part=block.part, known=known)
            if last:
                done = _await(last, done, len(blocks), progress)
            last = finisher.submit(finish, block, maps, pixels)
        if last:
            _await(last, done, len(blocks), progress)


def write_output(path: Path, output: str, canvas: Canvas, blocks: Sequence[Block], parts: Parts) -> None:
    """Write one output of a slide from its parts, atomically.

    Args:
        path: The file or folder.
        output: One of :data:`nuclora.inference.outputs.FORMATS`.
        canvas: What of the slide was predicted.
        blocks: The blocks that it was cut into.
        parts: All parts.

    Raises:
        NucloraError: The disk is full.
    """
    if output == "labels":
        write_labels(path, canvas, blocks, parts)
    elif output == "overlay":
        write_overview(path, canvas, parts)
    elif output == "geojson":
        write_nuclei(path, canvas, parts)
    elif output == "coco":
        write_annotations(path, canvas, parts)
    elif output == "parquet":
        write_measurements(path, parts)
    elif output == "zarr":
        write_store(path, canvas, blocks, parts)
    else:
        write_table(path, parts)


def has_tissue(block: Block, tissue: Tissue) -> bool:
    """Whether any window of a block shows tissue; where none does there is nothing to be found."""
    return any(_shows(place, block, tissue) for place in block.windows())


def _shows(place: tuple[int, int], block: Block, tissue: Tissue) -> bool:
    rows, columns = (
        range(start, min(start + block.lattice[0], length)) for start, length in zip(place, block.shape, strict=True)
    )
    return tissue.meets(rows, columns)


def _known(block: Block, before: Known, tissue: Tissue) -> Known:
    """The maps of a block's windows that need no prediction: those of the block before it, and those of glass."""
    side = block.lattice[0] // STRIDE
    glass = np.zeros((len(MAPS) + 1, side, side), dtype=np.float32)
    known = {place: before[place] for place in block.windows() if place in before}
    return known | {place: glass for place in block.windows() if not _shows(place, block, tissue)}


def _ahead(
    reader: ThreadPoolExecutor, blocks: Iterable[Block], read: Callable[[Block], NDArray[np.uint8]]
) -> Iterator[tuple[Block, NDArray[np.uint8]]]:
    """Each block with its pixels, while the next one's are read."""
    waiting: list[tuple[Block, Future[NDArray[np.uint8]]]] = []
    for block in blocks:
        waiting.append((block, reader.submit(read, block)))
        if len(waiting) > 1:
            first, pixels = waiting.pop(0)
            yield first, pixels.result()
    for first, pixels in waiting:
        yield first, pixels.result()


def _await(last: Future[None], done: int, total: int, progress: BlockProgress | None) -> int:
    last.result()
    if progress:
        progress(done + 1, total)
    return done + 1


def peak_mb() -> float:
    """Most memory that this process has held so far, in megabytes."""
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In bytes on macOS, in kibibytes elsewhere.
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
