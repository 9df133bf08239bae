"""Encoder blocks that PyTorch compiles: what lies between the products of matrices is read and written once."""

from __future__ import annotations

import torch
from torch import Tensor

from nuclora.errors import NucloraError
from nuclora.models.lora import encoder_blocks
from nuclora.models.sam import NucleiSam

# All blocks share their forward's code, so its limit is over their kinds, in training and in validation, and how many
# tiles are worked off at once.
_KINDS = 64


def compile_blocks(model: NucleiSam, device: torch.device) -> None:
    """Compile the blocks of the encoder at their first call, each kind once.

    Weights, names and checkpoints stay as they are. Results differ by the order of sums.

    Args:
        model: A base, with its adapter if it is to have one.
        device: Where it will compute.

    Raises:
        NucloraError: Nothing can be compiled here, for want of a C++ compiler, say.
    """
    try:
        # Now, and not at the first step, where a failure would come out of the middle of the network.
        torch.compile(_probe)(torch.ones(1, device=device))
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NucloraError(
            f"PyTorch cannot compile on this machine: {reason}", mend="set train.compile=false"
        ) from error
    # By the older of its two names, which PyTorch 2.6 has too.
    torch._dynamo.config.cache_size_limit = max(_KINDS, torch._dynamo.config.cache_size_limit)
    for name in encoder_blocks(model):
        # For each shape anew: code for any shape is slower, and a training has few.
        model.get_submodule(name).compile(dynamic=False)


def _probe(values: Tensor) -> Tensor:
    return values.exp() + 1
