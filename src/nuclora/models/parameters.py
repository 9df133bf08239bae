"""How many parameters a recipe trains, counted without any weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from nuclora.models.checkpoints import build_base
from nuclora.models.lora import PARTS, adapt
from nuclora.recipe import Recipe

DENSE = "dense_decoder"
# The encoder and its neck are told of only where they train in full.
_ALWAYS_TOLD = ("mask_decoder", "prompt_encoder")


@dataclass(frozen=True)
class ParameterRow:
    """One part of the network.

    Args:
        part: "base" is the whole base; "mask_decoder", "prompt_encoder", "neck" and "vision_encoder" are parts of it;
            the "adapter" and the "dense_decoder" are beside it.
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
    sizes = dict.fromkeys(PARTS, 0)
    trained = dict.fromkeys(PARTS, False)
    for name, parameter in peft_model.get_base_model().named_parameters():
        if ".lora_" in name:
            adapter += parameter.numel()
            continue
        if name.startswith(f"{DENSE}."):
            dense += parameter.numel()
            continue
        part = next((part for part, prefix in PARTS.items() if name.startswith(f"{prefix}.")), None)
        if ".modules_to_save." in name:
            assert part is not None
            trained[part] = True
            continue
        base += parameter.numel()
        if part is not None:
            sizes[part] += parameter.numel()
    rows = [ParameterRow("base", base, False), ParameterRow("adapter", adapter, True)]
    rows += [ParameterRow(DENSE, dense, True)] if dense else []
    rows += [ParameterRow(part, sizes[part], trained[part]) for part in PARTS if part in _ALWAYS_TOLD or trained[part]]
    return ParameterTable(tuple(rows))


def count_recipe(recipe: Recipe, weights: Path | None = None) -> ParameterTable:
    """Count what a recipe trains, on the meta device.

    Args:
        recipe: Names the base and what trains.
        weights: The `transformers` folder of a custom base; other bases need none.
    """
    model = build_base(recipe.base, weights)
    adapted = adapt(model, recipe.adapter, recipe.seed)
    if recipe.dense is not None:
        model.add_dense_decoder(recipe.dense, recipe.seed)
    return count_parameters(adapted)
