"""How many parameters a recipe trains, counted without any weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from nuclora.models.checkpoints import build_base
from nuclora.models.lora import CONVOLUTIONS, PARTS, adapt
from nuclora.recipe import Recipe

DENSE = "dense_decoder"
# The encoder and its neck are told of only where they train in full.
_ALWAYS_TOLD = ("mask_decoder", "prompt_encoder")


@dataclass(frozen=True)
class ParameterRow:
    """One part of the network.

    Args:
        part: "base" is the whole base; "mask_decoder", "prompt_encoder", "neck", "vision_encoder" and the encoder's
            "convolutions" are parts of it; the "adapter" and the "dense_decoder" are beside it.
        parameters: How many it has.
        trained: Whether it trains.
    """

    part: str
    parameters: int
    trained: bool


@dataclass(frozen=True)
class ParameterTable:
    """The parameters of an adapted base, by part."""

    rows: tuple[ParameterRow, ...]

    @property
    def total(self) -> int:
        """Parameters of the base, the adapter and the dense decoder."""
        return sum(row.parameters for row in self.rows if row.part in ("base", "adapter", DENSE))

    @property
    def trainable(self) -> int:
        """Parameters that train."""
        return sum(row.parameters for row in self.rows if row.trained)

    @property
    def share(self) -> float:
        """Trainable parameters per parameter."""
        return self.trainable / self.total

    def to_json(self) -> dict[str, Any]:
        """Each part's parameters under its name, and the sums; "trained" lists the parts that train."""
        return {
            **{row.part: row.parameters for row in self.rows},
            "total": self.total,
            "trainable": self.trainable,
            "share": self.share,
            "trained": [row.part for row in self.rows if row.trained],
        }


def count_parameters(peft_model: PeftModel) -> ParameterTable:
    """Count an adapted base; the trained copies of its parts are not counted twice."""
    base = adapter = dense = 0
    parts = dict.fromkeys(_ALWAYS_TOLD, 0)
    trained: dict[str, int] = {}
    places = {prefix: part for part, prefix in PARTS.items()}
    for name, parameter in peft_model.get_base_model().named_parameters():
        if ".lora_" in name:
            adapter += parameter.numel()
        elif name.startswith(f"{DENSE}."):
            dense += parameter.numel()
        elif ".modules_to_save." in name:
            part = places.get(name.partition(".modules_to_save.")[0], CONVOLUTIONS)
            trained[part] = trained.get(part, 0) + parameter.numel()
        else:
            base += parameter.numel()
            if (part := name.partition(".")[0]) in parts:
                parts[part] += parameter.numel()
    rows = [ParameterRow("base", base, False), ParameterRow("adapter", adapter, True)]
    rows += [ParameterRow(DENSE, dense, True)] if dense else []
    order = [part for part in (*PARTS, CONVOLUTIONS) if part in parts or part in trained]
    rows += [ParameterRow(part, trained.get(part) or parts[part], part in trained) for part in order]
    return ParameterTable(tuple(rows))


def count_recipe(recipe: Recipe, weights: Path | None = None) -> ParameterTable:
    """Count what a recipe trains, on the meta device.

    Args:
        recipe: Names the base and what trains.
        weights: The `transformers` folder of a custom base; other bases need none.
    """
    model = build_base(recipe.base, weights)
    if recipe.input.size is not None:
        model.check_input(recipe.input.size, recipe.input.size)
    adapted = adapt(model, recipe.adapter, recipe.seed)
    if recipe.dense is not None:
        model.add_dense_decoder(recipe.dense, recipe.seed)
    return count_parameters(adapted)
