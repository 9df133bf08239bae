"""The dense decoder's network as OpenVINO runs it on a CPU."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nuclora.errors import NucloraError
from nuclora.models.dense_sam import DenseSam

if TYPE_CHECKING:
    from nuclora.models.precision import Precision

_HINTS: Final = {"no": "f32", "bf16": "bf16"}


class OpenVinoNetwork:
    """What a call of the model gives, compiled for this CPU and one window at a time.

    Args:
        model: With a dense decoder, on the CPU, in evaluation mode.
        input_size: Side S of what the encoder sees, in pixels.
        window: Side of a window, in pixels.
        precision: `no` for float32 or `bf16`.

    Raises:
        NucloraError: OpenVINO is not installed, or does not compute in this precision.
    """

    def __init__(self, model: DenseSam, input_size: int, window: int, precision: Precision) -> None:
        try:
            import openvino
        except ImportError as error:
            raise NucloraError("--backend openvino needs OpenVINO", mend="pip install 'nuclora[openvino]'") from error
        if precision not in _HINTS:
            raise NucloraError(f"OpenVINO does not compute in {precision} here", mend="--precision bf16 or no")
        examples = torch.zeros(1, 3, input_size, input_size), torch.zeros(1, 3, window, window)
        # The fused attention kernels cannot be taken apart into what OpenVINO knows.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            # PyTorch's export calls what PyTorch itself has deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            program = torch.export.export(model, examples, strict=False)
            network = openvino.convert_model(program)
        self._compiled = openvino.Core().compile_model(
            network,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",
            },
        )

    def __call__(self, pixel_values: Tensor, own: Tensor) -> Tensor:
        """As :meth:`nuclora.models.dense_sam.DenseSam.forward`, of one window, in float32."""
        result = self._compiled([pixel_values.numpy(), own.numpy()])[0]
        return torch.from_numpy(result.copy())
