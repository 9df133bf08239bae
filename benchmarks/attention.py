"""One global attention of a ViT at 1,024 pixels, forward and backward: by fused kernels against the plain form."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionAttention

from common import Results, parser
from nuclora.models.vit import FusedAttention

_SIDE = 64
_FORMS = {"plain": SamVisionAttention, "fused": FusedAttention}
_SIZES = {"ViT-B": (768, 12), "ViT-H": (1280, 16)}
_PEAK = "from nuclora.inference.slides import peak_mb; print(peak_mb() / 1e3)"


def make_step(form: str, width: int, heads: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Output, and gradient of its mean square at the tokens."""
    torch.manual_seed(0)
    config = SamVisionConfig(hidden_size=width, num_attention_heads=heads, image_size=16 * _SIDE)
    attention = _FORMS[form](config, 0).requires_grad_(False)
    for positions in (attention.rel_pos_h, attention.rel_pos_w):
        torch.nn.init.normal_(positions, std=0.1)
    tokens = torch.randn(1, _SIDE, _SIDE, width, requires_grad=True)

    def step() -> tuple[Tensor, Tensor]:
        output = attention(tokens)[0]
        return output.detach(), torch.autograd.grad(output.square().mean(), tokens)[0]

    return step


def peak_gb(form: str, width: int, heads: int) -> float:
    """Most memory of a process that takes one step."""
    script = f"from attention import make_step; make_step({form!r}, {width}, {heads})(); {_PEAK}"
    done = subprocess.run([sys.executable, "-c", script], cwd=sys.path[0], capture_output=True, text=True, check=True)
    return float(done.stdout)


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    """Both outputs and both gradients."""
    # By norms: the gradient of a mean is far smaller than any tolerance for single values.
    return all(float((here - there).norm() / there.norm()) < 1e-3 for here, there in zip(one, other, strict=True))


def main() -> None:
    given = parser(__doc__ or "", __file__).parse_args()
    results = Results()
    # First, because the most memory of a new process begins with what this one holds.
    for name, size in _SIZES.items():
        print(f"{name}: at most {peak_gb('fused', *size):.2f} GB, plain {peak_gb('plain', *size):.2f} GB", flush=True)
    for name, size in _SIZES.items():
        fused, plain = make_step("fused", *size), make_step("plain", *size)
        results.compare(f"global attention of {name}, forward and backward", fused, plain, same, given.repeats)
    results.finish(given.out)


if __name__ == "__main__":
    main()
