from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Page faults of asking for, filling and freeing 160 MB once more, when the heap has found its size. glibc itself learns
# to keep blocks of up to 32 MB, so they are larger.
_SCRIPT = """
import resource
import torch
from nuclora.allocator import keep_freed_memory

if {keep}:
    assert keep_freed_memory()
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(40 << 20, dtype=torch.uint8) for _ in range(4)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_used_again_with_few_page_faults():
    faults = {
        keep: int(
            subprocess.run([sys.executable, "-c", _SCRIPT.format(keep=keep)], capture_output=True, check=True).stdout
        )
        for keep in (False, True)
    }
    assert 10 * faults[True] < faults[False]
