from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Page faults of asking for, filling and freeing 100 MB a second time.
_SCRIPT = """
import resource
import torch
from nuclora.training.allocator import keep_freed_memory

if {keep}:
    assert keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(5 << 20, dtype=torch.uint8) for _ in range(20)]
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
