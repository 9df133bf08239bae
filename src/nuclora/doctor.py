"""What this machine can do, what is missing, and how to get it."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from nuclora.extras import EXTRAS

State = Literal["good", "note", "bad"]
_ROOM_FOR_A_RUN = 5e9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        what: What was looked at.
        state: `good`; `note`, something optional is missing; `bad`, something needed is.
        found: What is there.
        mend: How to get what is missing.
    """

    what: str
    state: State
    found: str
    mend: str = ""


def diagnose() -> list[Finding]:
    """Look at Python, packages, devices, memory, disk and base weights."""
    looks = (_devices, _memory, _disk, _bases)
    return [_python(), *_packages(), *_extras(), *(finding for look in looks for finding in _found(look))]


def _found(look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except ImportError:
        # What is missing is told among the packages.
        return []


def _python() -> Finding:
    good = sys.version_info >= (3, 11)
    return Finding(
        "Python", "good" if good else "bad", platform.python_version(), "" if good else "install 3.11 or newer"
    )


def _packages() -> list[Finding]:
    """The packages that nuclora requires, as installed."""
    from packaging.requirements import Requirement

    findings = []
    for text in metadata.requires("nuclora") or []:
        requirement = Requirement(text)
        if requirement.marker is not None:
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            findings.append(Finding(requirement.name, "bad", "not installed", f"pip install '{text}'"))
            continue
        good = requirement.specifier.contains(version, prereleases=True)
        mend = "" if good else f"pip install '{text}'"
        findings.append(Finding(requirement.name, "good" if good else "bad", version, mend))
    return findings


def _extras() -> list[Finding]:
    return [
        Finding(module, "good", "installed")
        if importlib.util.find_spec(module)
        else Finding(module, "note", "not installed", f"pip install 'nuclora[{extra}]'")
        for module, extra in EXTRAS.items()
    ]


def _devices() -> list[Finding]:
    import torch

    from nuclora.data.tiles import counted
    from nuclora.machine import usable_cores
    from nuclora.models.precision import is_fast_in_bfloat16

    found = f"{counted(usable_cores(), 'core')}, {counted(torch.get_num_threads(), 'thread')} for torch"
    findings = [Finding("processor", "good", found)]
    if is_fast_in_bfloat16(torch.device("cpu")):
        findings.append(Finding("bfloat16", "good", "fast on this processor: --precision bf16, train.precision=auto"))
    else:
        findings.append(
            Finding("bfloat16", "note", "slow on this processor", "predict in float32, or see nuclora quantize")
        )
    if torch.backends.mps.is_available():
        mend = "training computes on it; nuclora predict and nuclora evaluate on the CPU"
        findings.append(Finding("GPU", "note", "Apple's, by MPS", mend))
    elif not torch.cuda.is_available():
        findings.append(Finding("GPU", "note", "none that torch can use", "small bases (mobile_sam) train on the CPU"))
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        findings.append(Finding(f"GPU {index}", "good", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"))
    return findings


def _memory() -> list[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    return [Finding("memory", "good", f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free")]


def _disk() -> list[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    state: State = "good" if free > _ROOM_FOR_A_RUN else "note"
    mend = "" if state == "good" else "a run over NuInsSeg wants some 5 GB"
    return [Finding("disk here", state, f"{free / 1e9:.0f} GB free", mend)]


def _bases() -> list[Finding]:
    from nuclora.errors import NucloraError
    from nuclora.models.bases import BASES
    from nuclora.models.checkpoints import find_weights

    findings = []
    for name, base in BASES.items():
        if not base.file:
            continue
        try:
            findings.append(Finding(f"base {name}", "good", str(find_weights(name))))
        except NucloraError as error:
            findings.append(Finding(f"base {name}", "note", "weights not here", error.mend or ""))
    return findings
