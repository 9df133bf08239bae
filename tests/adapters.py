"""Adapters on disk, as a training leaves them."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel

from nuclora.models.adapter import AdapterCard, save_adapter
from nuclora.models.checkpoints import LoadedBase
from nuclora.models.preprocess import Normalise
from nuclora.recipe import Recipe


def write_adapter(
    folder: Path, model: PeftModel, base: LoadedBase, recipe: Recipe, normalise: Normalise, seed: int = 0
) -> None:
    """Save an adapter with the card that its recipe and base ask for; the recipe says its input's size.

    Its weights are moved at random: as it begins, LoRA adds nothing, and every adapter would be the base.
    """
    assert recipe.input.size is not None
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.requires_grad:
                weights += 0.1 * torch.randn(weights.shape, generator=generator)
    card = AdapterCard(
        base=recipe.base,
        base_sha256=base.sha256,
        input_size=recipe.input.size,
        normalise=normalise,
        recipe=recipe.model_dump(mode="json"),
    )
    save_adapter(model, folder, card)
