"""In which number format a network computes, and whether a machine is fast in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal, get_args

import torch

from nuclora.recipe import AskedPrecision

Precision = Literal["no", "bf16", "fp16", "int8"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
AUTOCAST: Final[dict[Precision, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Of those that PyTorch computes in by autocasting."""
# Intel and AMD from Sapphire Rapids and Zen 4 on; ARM's Neoverse V1 and N2. Others compute bfloat16 in software.
_FAST: Final = re.compile(r"\b(amx_bf16|avx512_bf16|bf16)\b")
_AMPERE: Final = (8, 0)


def resolve_precision(asked: Precision | AskedPrecision, device: torch.device) -> Precision:
    """Settle what a device computes in.

    Args:
        asked: What a recipe or a user asks for.
        device: Where the network computes.
    """
    if asked != "auto":
        return asked
    return "bf16" if is_fast_in_bfloat16(device) else "no"


def is_fast_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16: without, it takes three times as long as float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _AMPERE
    return device.type == "cpu" and _FAST.search(_cpu_flags()) is not None


def _cpu_flags() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""
