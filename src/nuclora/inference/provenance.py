"""What the outputs of a prediction are made by: the adapter, known by its content, and its settings."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nuclora.errors import NucloraError
from nuclora.files import digest_file
from nuclora.models.adapter import CARD, CONFIG, INT8, AdapterCard, read_recipe, tuned_settings
from nuclora.recipe import VIEWS, EvaluateSettings, change_evaluation


def choose_settings(adapter: Path, card: AdapterCard, views: int | None, min_size: int | None) -> EvaluateSettings:
    """The settings of an adapter, with those that are given in their place.

    Args:
        adapter: Its folder.
        card: Its card.
        views: As in :func:`nuclora.inference.images.predict_files`.
        min_size: As there.

    Raises:
        NucloraError: The adapter has no dense decoder, or a setting is out of range.
    """
    recipe = read_recipe(adapter, card)
    if recipe.dense is None:
        raise NucloraError(
            f"its recipe, {recipe.name}, trains no decoder that finds nuclei by itself",
            path=adapter,
            mend="name an adapter of the recipe nuclora with -a",
        )
    if views is not None and views not in VIEWS:
        raise NucloraError(f"{views} views", mend=f"give --views {', '.join(map(str, VIEWS[:-1]))} or {VIEWS[-1]}")
    changes = {"min_size": min_size, "decode.views": views}
    fields = [f"evaluate.{name}={value}" for name, value in changes.items() if value is not None]
    return change_evaluation(tuned_settings(card, recipe), fields)


def identify_adapter(adapter: Path, card: AdapterCard) -> dict[str, str]:
    """What tells one adapter from another wherever its files lie.

    Args:
        adapter: Its folder.
        card: Its card.
    """
    digest = hashlib.sha256()
    networks = *sorted(adapter.glob("*.safetensors")), *sorted(adapter.glob(f"{INT8}.*"))
    for file in (adapter / CARD, adapter / CONFIG, *networks):
        digest.update(f"{file.name} {hash_file(file)}\n".encode())
    return {"base": card.base, "base_sha256": card.base_sha256, "adapter_sha256": digest.hexdigest()}


def hash_file(path: Path) -> str:
    """SHA-256 of a file; empty where it cannot be read, which is told where it is read in earnest."""
    try:
        return digest_file(path)
    except OSError:
        return ""
