"""Encoder blocks that keep their input alone, and are computed again in the backward pass (Chen et al. 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, features: Tensor, again: bool) -> Tensor:
    """What a block makes of features.

    Args:
        block: The block.
        features: Its input.
        again: Keep nothing of what it computes on the way, and compute that again in the backward pass.
    """
    if again and torch.is_grad_enabled():
        result: Tensor = checkpoint(block, features, use_reentrant=False)
    else:
        result = block(features)
    return result
