"""What a computation runs on: versions, processor, cores."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """What runs here: versions, machine, command, commit; kept with each session of a run."""
    packages = (
        "nuclora",
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "numpy",
        "scipy",
        "scikit-image",
        "kornia",
    )
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": usable_cores(),
        "packages": {name: metadata.version(name) for name in packages},
    }


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _commit() -> str | None:
    """Commit of the checkout that this package runs from; none when installed from a wheel, or where git is not."""
    here = Path(__file__).parent
    if not (here.parents[1] / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    # A checkout may have been copied to a machine without git.
    with contextlib.suppress(OSError):
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=False).stdout.strip() or None
    return None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
