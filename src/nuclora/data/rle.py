"""COCO's run-length encoding of masks: plain lists, and the compressed strings of its C library.

Runs go down the columns, zeros first. In the string a number has five bits a character, the least first, offset by 48,
with bit 5 set where more follow and bit 4 of the last as the sign; from the fourth number on it is the difference to
the number two before it.

Reference:
    cocoapi, ``common/maskApi.c``: ``rleFrString``, ``rleDecode``. https://github.com/cocodataset/cocoapi
"""

from __future__ import annotations

import numpy as np

from nuclora.data.polygons import Pixels


def runs_of(text: str) -> list[int]:
    """Lengths of the runs in a compressed string.

    Raises:
        ValueError: Not such a string.

    Example:
        >>> runs_of("52203")
        [5, 2, 2, 2, 5]
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"the character {character!r} in run lengths")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("run lengths that are cut short")
    return runs


def decode(runs: list[int] | str, size: tuple[int, int]) -> Pixels:
    """Find the pixels of a mask.

    Args:
        runs: Lengths of the runs, or the string of them.
        size: Height and width.

    Returns:
        Indices into the mask flattened row by row, in ascending order.

    Raises:
        ValueError: Not run lengths, or more or fewer pixels than the mask has. (COCO's own decoder leaves a rest
            undefined.)

    Example:
        >>> decode([1, 2, 3], (2, 3)).tolist()  # the second pixel of the first column, the first of the second
        [1, 3]
    """
    lengths = np.asarray(runs_of(runs) if isinstance(runs, str) else runs)
    if lengths.ndim != 1 or (lengths.size and lengths.dtype.kind not in "iu") or (lengths < 0).any():
        raise ValueError("run lengths that are not whole numbers from 0 up")
    height, width = size
    total = sum(int(length) for length in lengths)
    if total != height * width:
        raise ValueError(f"run lengths of {total} pixels for a mask of {height * width}")
    lengths = lengths.astype(np.int64)
    starts, sizes = (np.cumsum(lengths) - lengths)[1::2], lengths[1::2]
    # Pixel by pixel of the nucleus, not of the image: a file has one of these for each nucleus.
    inside = np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
    return np.sort(inside % height * width + inside // height).astype(np.int64)
