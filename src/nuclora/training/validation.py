"""Scores of the validation tiles between two steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nuclora.data.tiles import TileSet
from nuclora.inference.predictor import Predictor
from nuclora.inference.protocols import segment
from nuclora.metrics import score
from nuclora.recipe import Protocol, Recipe


def validation_protocol(recipe: Recipe) -> Protocol:
    """Where the prompts come from: the truth's boxes, if the model is made for prompts."""
    return "oracle-box" if recipe.dense is None else "automatic"


def score_validation(
    predictor: Predictor, tiles: TileSet, recipe: Recipe, check: Callable[[], None] | None = None
) -> dict[str, float]:
    """Mean `dice`, `aji` and `pq` of tiles.

    Args:
        predictor: The model as it is now.
        tiles: One tile or more, with labels.
        recipe: Its evaluation and protocol are read; one view is enough to compare steps of one training.
        check: Called before each tile; what it raises ends the validation.
    """
    settings = recipe.evaluate.with_views(1)
    protocol = validation_protocol(recipe)
    scores = []
    for tile in tiles:
        if check:
            check()
        sample = tile.read()
        labels = segment(predictor, sample.image, sample.labels, protocol, settings)
        scores.append(score(sample.labels, labels, sample.ignore))
    return {name: float(np.mean([row[name] for row in scores])) for name in ("dice", "aji", "pq")}
