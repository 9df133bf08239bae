"""Adapters on disk, as a training leaves them."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel

from nuclora.models.adapter import AdapterCard, save_adapter
from nuclora.models.checkpoints import LoadedBase
from nuclora.models.preprocess import Normalise
from nuclora.recipe import Recipe


def write_adapter(folder: Path, model: PeftModel, base: LoadedBase, recipe: Recipe, normalise: Normalise) -> None:
    """Save an adapter with the card that its recipe and base ask for; the recipe says its input's size."""
    assert recipe.input.size is not None
    card = AdapterCard(
        base=recipe.base,
        base_sha256=base.sha256,
        input_size=recipe.input.size,
        normalise=normalise,
        recipe=recipe.model_dump(mode="json"),
    )
    save_adapter(model, folder, card)
