"""What is to be predicted, what the outputs of each image are made from, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nuclora.data.images import MAX_PIXELS
from nuclora.errors import NucloraError, is_out_of_memory
from nuclora.inference.canvas import SlideOptions, open_canvas
from nuclora.inference.image_files import ImageFile
from nuclora.inference.parts import DamagedPart
from nuclora.inference.predictor import Predictor
from nuclora.inference.scale import scale_to
from nuclora.io.slides import is_slide
from nuclora.recipe import EvaluateSettings


@dataclass(frozen=True)
class How:
    """How all images of a prediction are predicted; goes to the workers of a cluster.

    Attributes:
        made_by: What tells this adapter and these settings from others; JSON values only.
        load: Loads the model; called only where there is something to do.
        formats: Which of :data:`nuclora.inference.outputs.FORMATS` to write.
        settings: How to segment.
        microns_per_pixel: Of images, where known; they are rescaled by it to what the adapter knows.
        slides: How slides are taken.
        overwrite: Make all outputs anew, and replace what they were made from before.
    """

    made_by: dict[str, Any]
    load: Callable[[], Predictor]
    formats: tuple[str, ...]
    settings: EvaluateSettings
    microns_per_pixel: float | None = None
    slides: SlideOptions = field(default_factory=SlideOptions)
    overwrite: bool = False

    @property
    def image_scale(self) -> float:
        """Pixels of an image, not a slide, for each pixel that the model sees."""
        return scale_to(self.slides.adapters_microns, self.microns_per_pixel)


@dataclass(frozen=True)
class Job:
    """An image, and what its outputs are made from.

    Attributes:
        image: The image.
        sha256: Its hash; of a slide in several files with what identifies them.
        made_by: What tells the adapter, the settings and the way a slide is taken from others.
        is_slide: Whether it is read piece by piece.
    """

    image: ImageFile
    sha256: str
    made_by: dict[str, Any]
    is_slide: bool


def make_job(image: ImageFile, sha256: str, how: How) -> Job:
    """What is to be done for an image.

    Args:
        image: The image.
        sha256: Hash of its file.
        how: How it is predicted.

    Raises:
        NucloraError: It is a slide that cannot be opened.
    """
    if not is_slide(image.path, MAX_PIXELS):
        taken = {} if how.image_scale == 1 else {"scale": how.image_scale}
        return Job(image, sha256, how.made_by | taken, is_slide=False)
    identity, taken = _describe(image.path, how.slides)
    return Job(image, sha256 + identity, how.made_by | taken, is_slide=True)


def parts_made_from(job: Job) -> dict[str, Any]:
    """What the parts of a slide are made from, but for how the model cuts it into blocks."""
    return {"slide": job.sha256, **job.made_by}


def require_slides(images: Sequence[ImageFile]) -> None:
    """See that all images are slides, as options for slides ask.

    Raises:
        NucloraError: One is not.
    """
    for image in images:
        # What cannot be opened is told by name, and stops no other.
        if is_slide(image.path, MAX_PIXELS) is False:
            raise NucloraError(
                "--region and --no-tissue-mask are for slides, and this is an image",
                path=image.path,
                mend="name slides only, or leave them out",
            )


def failure_of(job: Job, error: Exception) -> NucloraError:
    """The error of a slide that cannot be read, or its parts, or of too little memory: it stops no other image.

    Raises:
        Exception: It is another one; of nuclora's own with the image's path where it names none.
    """
    if is_out_of_memory(error):
        if job.is_slide:
            mend = "leave it more memory: end other work, or take fewer --workers-per-gpu or --precision bf16"
        else:
            mend = "save it as a tiled TIFF of several levels, which is read piece by piece"
        return NucloraError("needs more memory than there is", path=job.image.path, mend=mend)
    if not isinstance(error, NucloraError):
        raise error
    if error.path is None:
        raise NucloraError(error.reason, path=job.image.path, mend=error.mend) from error
    if isinstance(error, DamagedPart) or (job.is_slide and error.path == job.image.path):
        return error
    raise error


def _describe(path: Path, options: SlideOptions) -> tuple[str, dict[str, Any]]:
    """What identifies a slide whose pixels lie in more files than one; and what tells this way of taking it."""
    with open_canvas(path, options) as canvas:
        return canvas.slide.identity, {
            "microns_per_pixel": canvas.microns_per_pixel,
            "region": list(canvas.region),
            "scale": canvas.scale,
            "tissue_mask": not options.everywhere,
        }
