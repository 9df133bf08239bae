"""What is to be predicted: images and slides, and what the outputs of each are made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nuclora.data.images import MAX_PIXELS
from nuclora.errors import NucloraError
from nuclora.inference.image_files import ImageFile
from nuclora.inference.provenance import hash_file
from nuclora.inference.slides import SlideOptions, describe
from nuclora.io.slides import is_slide


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


def find_jobs(
    images: Sequence[ImageFile], made_by: dict[str, Any], options: SlideOptions, failures: list[NucloraError]
) -> Iterator[Job]:
    """What is to be done for each image.

    Args:
        images: The images.
        made_by: What tells the adapter and the settings from others.
        options: How slides are taken.
        failures: Why slides cannot be opened is added here.
    """
    for image in images:
        sha256 = hash_file(image.path)
        if not is_slide(image.path, MAX_PIXELS):
            yield Job(image, sha256, made_by, is_slide=False)
            continue
        try:
            identity, taken = describe(image.path, options)
        except NucloraError as error:
            failures.append(error)
        else:
            yield Job(image, sha256 + identity, made_by | taken, is_slide=True)


def require_slides(images: Sequence[ImageFile]) -> None:
    """See that all images are slides, as options for slides ask.

    Raises:
        NucloraError: One is not.
    """
    for image in images:
        if not is_slide(image.path, MAX_PIXELS):
            raise NucloraError(
                "--region and --no-tissue-mask are for slides, and this is an image",
                path=image.path,
                mend="name slides only, or leave them out",
            )
