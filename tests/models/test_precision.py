import pytest
import torch

from nuclora.models import precision
from nuclora.models.precision import is_fast_in_bfloat16, resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("flags : fpu avx512f avx512_vnni", False),
        ("flags : avx512f avx512_bf16 avx512_vnni", True),
        ("flags : avx512f amx_bf16 amx_tile", True),
        ("Features : fp asimd bf16 i8mm", True),
        ("flags : avx512_bf16x", False),
        ("", False),
    ],
)
def test_a_processor_is_fast_by_its_instructions(monkeypatch, flags, fast):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: flags)
    assert is_fast_in_bfloat16(CPU) is fast
    assert resolve_precision("auto", CPU) == ("bf16" if fast else "no")


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_is_fast_from_ampere_on(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert is_fast_in_bfloat16(torch.device("cuda")) is fast


@pytest.mark.parametrize("asked", ["no", "bf16", "fp16"])
def test_what_is_asked_for_by_name_stays(monkeypatch, asked):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: "avx512_bf16")
    assert resolve_precision(asked, CPU) == asked
