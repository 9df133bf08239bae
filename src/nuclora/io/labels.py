"""Label maps on disk: int32 TIFF, losslessly compressed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from nuclora.errors import NucloraError
from nuclora.files import write_atomic

_MEND = "delete the scores.csv of this folder and run the same command again"


def write_labels(path: Path, labels: NDArray[np.int32]) -> None:
    """Write a label map, int32 (H, W), as a compressed TIFF, atomically."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, labels.astype(np.int32, copy=False), compression="zlib")
    write_atomic(path, buffer.getvalue())


def read_labels(path: Path) -> NDArray[np.int32]:
    """Read what :func:`write_labels` wrote.

    Raises:
        NucloraError: The file is missing or not a label map.
    """
    try:
        labels: NDArray[np.int32] = tifffile.imread(path)
    # Damaged bytes lead its decoders to raise nearly anything, sizes beyond the memory too.
    except Exception as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        raise NucloraError(f"cannot read the label map ({reason})", path=path, mend=_MEND) from error
    if labels.ndim != 2 or labels.dtype != np.int32:
        raise NucloraError(f"not a label map: {labels.dtype} of shape {labels.shape}", path=path, mend=_MEND)
    return labels
