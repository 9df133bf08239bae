"""Label maps whose ids may be any number."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer[Any]]


def renumber_far(labels: Labels) -> tuple[Labels, NDArray[np.int64] | None]:
    """Renumber labels whose largest id is out of proportion: tables by id, which much is done with, are as long as it.

    Args:
        labels: Label map (H, W), 0 background, not negative.

    Returns:
        Labels with ids of at most the number of pixels, in the order of the old ones, and the id that each had, that of
        i at i - 1; the labels as they are, and None, where that holds already.
    """
    if labels.max(initial=0) <= labels.size:
        return labels, None
    ids = np.unique(labels)
    ids = ids[ids > 0]
    return np.searchsorted(ids, labels, side="right").astype(np.int32), ids.astype(np.int64)
