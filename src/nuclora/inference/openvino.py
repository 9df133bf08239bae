"""The dense decoder's network as OpenVINO runs it on a CPU."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nuclora.errors import NucloraError
from nuclora.extras import require
from nuclora.inference.provenance import hash_file
from nuclora.models.adapter import INT8
from nuclora.models.dense_sam import DenseSam
from nuclora.models.precision import Precision
from nuclora.models.vit import ViT

_HINTS: Final[dict[Precision, str]] = {"no": "f32", "bf16": "bf16"}


class OpenVinoNetwork:
    """What a call of the model gives, compiled for this CPU and one window at a time.

    Args:
        network: OpenVINO's model, as of :func:`convert` or :func:`read_int8`.
        precision: `no` for float32 or `bf16`.

    Raises:
        NucloraError: OpenVINO does not compute in this precision.
    """

    def __init__(self, network: Any, precision: Precision) -> None:
        if precision not in _HINTS:
            raise NucloraError(
                f"OpenVINO does not compute in {precision} here", mend=f"--precision {' or '.join(_HINTS)}"
            )
        self._compiled = (
            _require_openvino()
            .Core()
            .compile_model(
                network,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": _HINTS[precision],
                    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                    "PERFORMANCE_HINT": "LATENCY",
                },
            )
        )

    def __call__(self, pixel_values: Tensor, own: Tensor) -> Tensor:
        """As :meth:`nuclora.models.dense_sam.DenseSam.forward`, of one window, in float32."""
        result = self._compiled([pixel_values.numpy(), own.numpy()])[0]
        return torch.from_numpy(result.copy())


def convert(model: DenseSam, input_size: int, window: int) -> Any:
    """OpenVINO's form of a network, for one window at a time.

    Args:
        model: With a dense decoder, on the CPU.
        input_size: Side S of what the encoder sees, in pixels.
        window: Side of a window, in pixels.

    Raises:
        NucloraError: OpenVINO is not installed.
    """
    openvino = _require_openvino()
    examples = torch.zeros(1, 3, input_size, input_size), torch.zeros(1, 3, window, window)
    encoder = model.vision_encoder
    fixed = encoder.fixed_positions(input_size) if isinstance(encoder, ViT) else contextlib.nullcontext()
    # The fused attention kernels cannot be taken apart into what OpenVINO knows.
    with fixed, torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # PyTorch's export calls what PyTorch itself has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        return openvino.convert_model(torch.export.export(model.eval(), examples, strict=False))


def read_int8(adapter: Path, hashes: Mapping[str, str]) -> Any:
    """The network in 8 bits of an adapter.

    Args:
        adapter: What :func:`nuclora.inference.quantize.quantize_adapter` wrote.
        hashes: SHA-256 of its files and of those that it was made from, by name, from the adapter's card.

    Raises:
        NucloraError: OpenVINO is not installed, the adapter has no such network, one of these files is missing or
            another one, or this OpenVINO does not read it.
    """
    openvino = _require_openvino()
    mend = "make it again with nuclora quantize"
    if not hashes:
        raise NucloraError("this adapter has no network in int8", path=adapter, mend="make one with nuclora quantize")
    for name, expected in hashes.items():
        if hash_file(adapter / name) != expected:
            what = "another file than" if (adapter / name).is_file() else "missing from"
            raise NucloraError(f"{what} the files of the network in int8", path=adapter / name, mend=mend)
    try:
        return openvino.Core().read_model(adapter / f"{INT8}.xml")
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rpartition(": ")[2][:120]
        raise NucloraError(f"OpenVINO cannot read it ({reason})", path=adapter / f"{INT8}.xml", mend=mend) from error


def _require_openvino() -> Any:
    return require("openvino", "--backend openvino")
