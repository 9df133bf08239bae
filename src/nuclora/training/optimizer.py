"""What steps the parameters that train."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import nn

from nuclora.recipe import Recipe


def make_optimizer(model: PeftModel, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over the parameters that train, which without weight decay is Adam.

    Args:
        model: The adapted model.
        recipe: Learning rates and weight decays are read. The dense decoder has its own, in a second group.
    """
    train, dense = recipe.train, recipe.dense
    fresh = _dense_parameters(model)
    in_fresh = {id(parameter) for parameter in fresh}
    adapted = [p for p in model.parameters() if p.requires_grad and id(p) not in in_fresh]
    groups = [{"params": adapted, "lr": train.learning_rate, "weight_decay": train.weight_decay}]
    if dense is not None:
        groups.append({"params": fresh, "lr": dense.learning_rate, "weight_decay": dense.weight_decay})
    return torch.optim.AdamW(groups)


def _dense_parameters(model: PeftModel) -> list[nn.Parameter]:
    decoder = model.get_base_model().dense_decoder
    return [] if decoder is None else list(decoder.parameters())
