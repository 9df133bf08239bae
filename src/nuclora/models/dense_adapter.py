"""An adapter as finding nuclei without prompts needs it: folded into the encoder, without PEFT and `transformers`.

Their imports take longer than the nuclei of a tile. What is not plain LoRA on a TinyViT is left to
:func:`nuclora.models.adapter.load_adapter`, and so is saying what is wrong with an adapter.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nuclora.models.adapter import (
    CONFIG,
    DENSE_WEIGHTS,
    WEIGHTS,
    load_dense_decoder,
    read_card,
    read_recipe,
    read_tensors,
)
from nuclora.models.bases import BASES
from nuclora.models.checkpoints import load_encoder, require_finite
from nuclora.models.dense_sam import DenseSam

_PREFIX = "base_model.model."
_PROMPT_PARTS = tuple(f"{_PREFIX}{part}." for part in ("prompt_encoder", "mask_decoder"))
# Fields of PEFT's configuration that are read here, and those that change nothing once the weights are trained. Any
# other one that is set asks for a kind of LoRA that PEFT alone knows.
_READ = {"peft_type", "r", "lora_alpha", "target_modules", "modules_to_save", "init_lora_weights"}
_WITHOUT_EFFECT = {
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
}


def load_dense_adapter(folder: Path, weights: Path | None = None) -> DenseSam | None:
    """Load the encoder and the dense decoder of an adapter.

    Args:
        folder: The adapter.
        weights: The base's weights, where they are not in their usual place.

    Returns:
        The network in evaluation mode, with the maps that `load_adapter`'s gives; None where the adapter is not of
        the kind that can be read so, or is at fault.

    Raises:
        NucloraError: No valid card; a file is missing or damaged; or no base weights.
    """
    card = read_card(folder)
    recipe = read_recipe(folder, card)
    base = BASES.get(card.base)
    if base is None or base.encoder != "tiny_vit" or recipe.dense is None or (weights and weights.is_dir()):
        return None
    config = _plain_config(folder / CONFIG)
    if config is None:
        return None
    tensors = read_tensors(folder / WEIGHTS)
    require_finite(tensors, folder / WEIGHTS)
    encoder = load_encoder(card.base, weights)
    model = encoder.model
    if encoder.sha256 != card.base_sha256 or card.input_size % model.stride or not _fold(model, config, tensors):
        return None
    load_dense_decoder(model, recipe.dense, folder / DENSE_WEIGHTS)
    return model.eval()


def _plain_config(path: Path) -> dict[str, Any] | None:
    try:
        config = json.loads(path.read_text("utf-8"))
        re.compile(config["target_modules"])
        plain = config["peft_type"] == "LORA" and config["r"] > 0 and config["lora_alpha"] >= 0
        # Some first weights, named by a word, are taken out of the base.
        plain = plain and isinstance(config["init_lora_weights"], bool)
        plain = plain and isinstance(config["modules_to_save"], list | None)
        others = {name: value for name, value in config.items() if name not in _READ | _WITHOUT_EFFECT}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, re.error):
        return None
    plain = plain and not any(value and value != "none" for value in others.values())
    return config if plain else None


def _fold(model: DenseSam, config: dict[str, Any], tensors: dict[str, Tensor]) -> bool:
    """Fold an adapter's weights into the network; whether they are just those that it asks for."""
    left = {name: tensor for name, tensor in tensors.items() if not name.startswith(_PROMPT_PARTS)}
    parameters = model.state_dict()
    for part in config["modules_to_save"] or []:
        for name, value in parameters.items():
            if name.startswith(f"{part}."):
                trained = left.pop(_PREFIX + name, None)
                if trained is None or trained.shape != value.shape:
                    return False
                value.copy_(trained)
    scale = config["lora_alpha"] / config["r"]
    for name, layer in model.named_modules():
        if not re.fullmatch(config["target_modules"], name):
            continue
        down, up = (left.pop(f"{_PREFIX}{name}.lora_{side}.weight", None) for side in "AB")
        if not isinstance(layer, nn.Linear) or down is None or up is None:
            return False
        if (*up.shape, *down.shape) != (layer.out_features, config["r"], config["r"], layer.in_features):
            return False
        # As FoldedLinear does at each call.
        parameters[f"{name}.weight"] += scale * (up.float() @ down.float())
    return not left
