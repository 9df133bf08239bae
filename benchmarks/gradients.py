"""Whether two forms of a training step do the same: by the gradients of what they train, not by the loss alone.

Random weights give logits near zero, and a loss near log 2 whatever the network sees. A gradient depends on all of it:
the mask decoder's on the whole forward pass, those of LoRA's second factors on the encoder's backward pass as well.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

Gradients = dict[str, Tensor]


def start_alike(model: nn.Module) -> None:
    """Give LoRA's first factors weights that their names decide, so that all sides have the same."""
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            generator = torch.Generator().manual_seed(zlib.crc32(_name(name).encode()))
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5)


def gradients(model: nn.Module, step: Callable[[], float]) -> Gradients:
    """Take a step, and keep the gradients that it came from.

    Returns:
        By name, on the CPU; PEFT's prefixes and that of a wrapped TinyViT are left out of the names.
    """
    found: Gradients = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            found[_name(name)] = parameter.grad.to("cpu", torch.float32, copy=True)

        return hook

    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    hooks = [
        parameter.register_post_accumulate_grad_hook(keep(name))  # type: ignore[no-untyped-call]
        for name, parameter in trained
    ]
    step()
    for hook in hooks:
        hook.remove()
    return found


def apart(ours: Gradients, theirs: Gradients) -> float:
    """Length of the difference as a share of `theirs`, of the encoder's and of the other gradients the larger.

    What only one side has a gradient of, such as masks that are computed and not looked at, counts as 0 of the other.
    """
    parts: dict[bool, list[str]] = {}
    for name in sorted(ours.keys() | theirs.keys()):
        parts.setdefault("vision_encoder." in name, []).append(name)
    return max(_distance(ours, theirs, names) for names in parts.values())


def _distance(ours: Gradients, theirs: Gradients, names: list[str]) -> float:
    none = torch.zeros(())
    differences = [ours.get(name, none) - theirs.get(name, none) for name in names]
    length = torch.stack([theirs[name].norm() for name in names if name in theirs]).norm()
    return float(torch.stack([difference.norm() for difference in differences]).norm() / length)


def _name(name: str) -> str:
    for part in ("base_model.model.", "modules_to_save.default."):
        name = name.replace(part, "")
    return name.replace("vision_encoder.encoder.", "vision_encoder.")
