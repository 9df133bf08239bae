"""How freed memory is kept, which a training step on a CPU spends up to a tenth of its time on."""

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

    Each step frees and asks for the same activations. Given back, every page of them is cleared and mapped again.
    The most memory that the process ever holds stays the same.

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
