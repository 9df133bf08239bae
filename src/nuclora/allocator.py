"""How freed memory is kept, which training and prediction on a CPU spend a tenth to a half of their time on."""

from __future__ import annotations

import ctypes
import sys

# The names that glibc's malloc.h gives them.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_BLOCKS = (1 << 30, 32 << 20)
"""Bytes; the second where an older glibc refuses the first."""
_KEPT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its next step, instead of giving it back to the system.

    Each step and each window frees and asks for the same activations. Given back, every page of them is cleared and
    mapped again, and threads wait for each other to do so. The most memory that the process ever holds stays about the
    same. It is for processes that the commands own; a program that calls nuclora decides for itself.

    Returns:
        Whether it could be set: on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        # musl has none.
        return False
    return any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_BLOCKS) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT))
