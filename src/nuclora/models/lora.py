"""Low-rank adapters by PEFT, and the parts of SAM that train in full beside them.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear
from torch import Tensor, nn

from nuclora.errors import NucloraError
from nuclora.models.sam import NucleiSam
from nuclora.recipe import AdapterSettings

# The linear layers of one encoder block, for the ViT and for TinyViT.
_ENCODER_LAYERS = {"qkv": r"attn\.qkv", "proj": r"attn\.proj", "mlp": r"mlp\.(?:lin1|lin2|fc1|fc2)"}
_DECODER_ATTENTION = r"mask_decoder\.transformer\..*attn\w*\.(?:q|k|v|out)_proj"
# Parts that can train in full, and where they are in the network; the convolutions are in many places.
PARTS = {
    "mask_decoder": "mask_decoder",
    "prompt_encoder": "prompt_encoder",
    "neck": "vision_encoder.neck",
    "vision_encoder": "vision_encoder",
}
CONVOLUTIONS = "convolutions"


class FoldedLinear(Linear):  # type: ignore[misc]
    """PEFT's adapted linear layer, computed as one product with the adapter folded into the weight.

    The same function wherever the adapter's input has no dropout. The adapter's own way reads and writes the layer's
    output three more times, which on a CPU costs more than the product.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        plain = isinstance(self.get_base_layer(), nn.Linear) and not args and not kwargs
        if not plain or self.disable_adapters or self.merged or not self._folds():
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        layer = self.get_base_layer()
        weight = layer.weight
        # In half precision the product of two small matrices would lose digits.
        with torch.autocast(x.device.type, enabled=False):
            for name in self.active_adapters:
                weight = weight + self.scaling[name] * (self.lora_B[name].weight @ self.lora_A[name].weight)
        return F.linear(x, weight, layer.bias)

    def _folds(self) -> bool:
        return all(
            name in self.lora_A
            and name not in self.lora_variant
            and self.lora_B[name].bias is None
            and (isinstance(self.lora_dropout[name], nn.Identity) or not self.training)
            for name in self.active_adapters
        )


def fold_adapters(config: LoraConfig) -> LoraConfig:
    """Let a configuration make :class:`FoldedLinear` layers; what it saves stays plain PEFT."""
    config._register_custom_module({nn.Linear: FoldedLinear})
    return config


def adapt(model: NucleiSam, settings: AdapterSettings, seed: int) -> PeftModel:
    """Freeze a base, and add what trains.

    Args:
        model: The base; it is changed in place.
        settings: Rank, targets and parts.
        seed: Seed of the adapters' first weights; the global generator is left alone.

    Returns:
        The PEFT model. `get_base_model()` is the same :class:`~nuclora.models.sam.NucleiSam`, whose `encode` and
        `decode` now go through the adapters; its trainable parameters are the adapters' and the parts'.

    Raises:
        NucloraError: No target, or more blocks asked for than there are.
    """
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        bias="none",
        target_modules=_target_pattern(model, settings),
        modules_to_save=[name for part in settings.train_parts for name in _modules(model, part)] or None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, fold_adapters(config))


def encoder_blocks(model: NucleiSam) -> list[str]:
    """Names of the encoder's attention blocks, first to last."""
    suffix = ".attn.qkv"
    names = (name for name, _ in model.named_modules())
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]


def check_targets(model: NucleiSam, settings: AdapterSettings) -> None:
    """Refuse settings that the base does not go with.

    Raises:
        NucloraError: No target, or more blocks asked for than there are.
    """
    if not settings.targets:
        raise NucloraError("adapter.targets is empty", mend="set adapter.targets=[qkv]")
    blocks = len(encoder_blocks(model))
    if settings.last_blocks is not None and settings.last_blocks > blocks:
        raise NucloraError(
            f"adapter.last_blocks={settings.last_blocks}, but {model.name_or_path} has {blocks} blocks",
            mend=f"set adapter.last_blocks={blocks} or null",
        )


def _modules(model: NucleiSam, part: str) -> list[str]:
    """Names of the modules that a part is made of."""
    if part != CONVOLUTIONS:
        return [PARTS[part]]
    found: list[str] = []
    for name, module in model.vision_encoder.named_modules(prefix="vision_encoder"):
        within = [type(layer) for layer in module.modules()]
        counted = any(f"{name}.".startswith(f"{other}.") for other in (*found, PARTS["neck"]))
        if not counted and nn.Conv2d in within and nn.Linear not in within:
            found.append(name)
    return found


def _target_pattern(model: NucleiSam, settings: AdapterSettings) -> str:
    """A pattern that the full names of the adapted layers match, and no others.

    A pattern, and not a list of endings, lets plain PEFT find the same layers in a `transformers.SamModel`.
    """
    check_targets(model, settings)
    blocks = encoder_blocks(model)
    if settings.last_blocks is not None:
        blocks = blocks[-settings.last_blocks :]
    choices = []
    if layers := [_ENCODER_LAYERS[target] for target in settings.targets if target in _ENCODER_LAYERS]:
        choices.append(rf"(?:{'|'.join(map(re.escape, blocks))})\.(?:{'|'.join(layers)})")
    if "decoder_attention" in settings.targets:
        choices.append(_DECODER_ATTENTION)
    return "|".join(choices)
