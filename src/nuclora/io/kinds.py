"""What a file is, where its suffix does not say it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

from PIL import Image

OWN_ENDINGS: Final = (".labels.tif", ".overlay.png")
"""Of what `nuclora predict` writes beside images what might be taken for one."""

_SUFFIXES: Final = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "WEBP": ".webp"}


def other_kind(path: Path) -> str | None:
    """The mend of a file that was to be a TIFF, an array or a slide, and is a picture of another kind.

    Args:
        path: A file that could not be read as what its suffix says.

    Returns:
        None where it is no such picture. Of a TIFF nothing is said: most slides are TIFF.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                kind = str(image.format)
    # Damaged bytes lead decoders to raise nearly anything.
    except Exception:
        return None
    if kind == "TIFF":
        return None
    if kind not in _SUFFIXES:
        return f"it is a {kind} file: save it as PNG or TIFF"
    return f"it is a {kind} file: rename it to {path.stem}{_SUFFIXES[kind]}"
