"""Encoder blocks that PyTorch compiles: what lies between the products of matrices is read and written once."""

from __future__ import annotations

import torch

from nuclora.models.lora import encoder_blocks
from nuclora.models.sam import NucleiSam

# All blocks share their forward's code, so its limit is over their kinds, in training and not, and the batch sizes.
_KINDS = 64


def compile_blocks(model: NucleiSam) -> None:
    """Compile the blocks of the encoder at their first call, each kind once.

    Weights, names and checkpoints stay as they are. Results differ by the order of sums.

    Args:
        model: A base, with its adapter if it is to have one.
    """
    torch._dynamo.config.recompile_limit = max(_KINDS, torch._dynamo.config.recompile_limit)
    for name in encoder_blocks(model):
        # For each shape anew: a batch has one size but for the last of an epoch, and code for any size is slower.
        model.get_submodule(name).compile(dynamic=False)
