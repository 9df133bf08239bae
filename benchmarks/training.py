"""A training step: ours against `transformers` and PEFT in the plain loop, on the same tiles, boxes and weights.

On a CPU MobileSAM by default; on a GPU also the ViTs: `--base sam_vit_h --device cuda`. The step is the study's: LoRA
of rank 16 on `qkv` beside the whole mask decoder, a box a nucleus, binary cross-entropy at 1,024 pixels; without
dropout, which would make the two sides differ.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from common import Results, best_of, parser
from nuclora.allocator import keep_freed_memory
from nuclora.data.synthetic import synthesize_tile
from nuclora.models.bases import BASES
from nuclora.models.lora import adapt
from nuclora.recipe import Recipe, load_recipe
from nuclora.training.samples import TrainingSample, make_sample
from nuclora.training.step import TileLoss
from plain_sam import plain_adapt, plain_sam, plain_step, random_base

Step = Callable[[], float]
# Of the loss: float32 sums in another order, and bfloat16's eight bits.
_TOLERANCE = {"float32": 1e-4, "bf16": 0.02}


def make_batch(recipe: Recipe, tiles: int, prompts: int) -> list[TrainingSample]:
    """Synthetic tiles with the same number of box prompts each, which the plain loop needs."""
    samples = []
    for seed in range(10 * tiles):
        tile = synthesize_tile(512, seed, seed)
        tile.ignore[:] = False
        generator = np.random.default_rng(seed)
        sample = make_sample(tile, recipe, size=1024, normalise="unit", generator=generator)
        if len(sample.ids) == prompts:
            samples.append(sample)
        if len(samples) == tiles:
            return samples
    sys.exit(f"the synthetic tiles have fewer than {prompts} nuclei: ask for fewer --prompts")


def our_side(recipe: Recipe, samples: list[TrainingSample], precision: str, device: str) -> Step:
    base = random_base(recipe.base).to(device)
    if recipe.train.checkpointing:
        base.vision_encoder.checkpoint_blocks()
    model = adapt(base, recipe.adapter, seed=0)
    loss = TileLoss(model, recipe.loss, recipe.prompts.chunk).train()
    optimizer = torch.optim.AdamW((p for p in loss.parameters() if p.requires_grad), lr=0)
    batch = [sample.to(torch.device(device)) for sample in samples]

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            value = loss(batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(value.detach())

    return step


def their_side(recipe: Recipe, samples: list[TrainingSample], precision: str, device: str) -> Step:
    ours = random_base(recipe.base)
    model = plain_adapt(plain_sam(ours), recipe.adapter, ours).to(device)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0)
    masks = [sample.labels == sample.ids[:, None, None] for sample in samples]
    batch: dict[str, Tensor] = {
        "pixel_values": torch.stack([sample.pixel_values for sample in samples]).to(device),
        "boxes": torch.stack([sample.boxes for sample in samples]).to(device),
        "masks": torch.stack(masks).float().to(device),
    }

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            return plain_step(model, optimizer, batch)

    return step


def memory_gb(device: str) -> float:
    """Most memory held so far: the device's, or this process's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    options = parser(__doc__ or "", __file__)
    options.add_argument("--base", default="mobile_sam", choices=[name for name in BASES if name != "custom"])
    options.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options.add_argument("--tiles", type=int, default=2, help="Batch size.")
    options.add_argument("--prompts", type=int, default=8, help="Boxes a tile.")
    given = options.parse_args()
    if given.device == "cpu":
        keep_freed_memory()
    changes = [f"base={given.base}", "adapter.dropout=0", "prompts.box_share=1", f"prompts.per_tile={given.prompts}"]
    recipe = load_recipe("paper", changes)
    samples = make_batch(recipe, given.tiles, given.prompts)
    results = Results(given.device)
    sides = {
        f"{name} {precision}": make(recipe, samples, precision, given.device)
        for name, make in (("reference", their_side), ("ours", our_side))
        for precision in _TOLERANCE
    }
    losses = {name: side() for name, side in sides.items()}
    for name, value in losses.items():
        expected = losses["reference float32"]
        if abs(value - expected) > _TOLERANCE[name.split()[1]] * abs(expected):
            sys.exit(f"the loss of {name} is {value}, and {expected} of the plain loop in float32")
    times = dict(zip(sides, best_of(list(sides.values()), given.repeats, given.device), strict=True))
    for precision in _TOLERANCE:
        for theirs in _TOLERANCE:
            name = f"training step, {given.base}, {given.tiles} tiles: {precision} against plain {theirs}"
            results.add(name, times[f"ours {precision}"], times[f"reference {theirs}"])
    results.finish(given.out)
    print(f"most memory, all four sides in one process: {memory_gb(given.device):.1f} GB")


if __name__ == "__main__":
    main()
