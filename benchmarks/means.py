"""Means to a faster or smaller training step, each alone: last blocks, recomputing, a batch in parts, forms of AdamW.

Steps are those of `training.py`: the study's, on one tile of 1,024 pixels with eight boxes, in float32. Adapters begin
at zero, so every side has the same loss, which is checked. A ViT-B takes its steps in processes of their own, whose
most memory is measured too.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator

from common import Results, best_of, parser
from nuclora.allocator import keep_freed_memory
from nuclora.data.augment import augment
from nuclora.data.synthetic import synthesize_tile
from nuclora.models.lora import adapt, encoder_blocks
from nuclora.recipe import Recipe, load_recipe
from nuclora.training.gradients import BatchGradients
from nuclora.training.samples import TrainingSample, make_sample
from nuclora.training.step import TileLoss
from plain_sam import random_base
from training import make_batch, our_side

# Of AdamW: whether in lists, whether in one kernel.
_FORMS = {"for-loop": (False, False), "foreach": (True, False), "fused": (False, True)}


def recipe_of(base: str, changes: Sequence[str] = ()) -> Recipe:
    return load_recipe(
        "paper", [f"base={base}", "adapter.dropout=0", "prompts.box_share=1", "prompts.per_tile=8", *changes]
    )


def check_same(name: str, losses: Sequence[float]) -> None:
    if any(abs(loss - losses[0]) > 1e-4 * abs(losses[0]) for loss in losses):
        sys.exit(f"{name}: the losses differ, {losses}, so the times say nothing")


def step_alone(base: str, changes: Sequence[str]) -> None:
    """Take one step, and print its loss, its seconds and the most memory of this process."""
    keep_freed_memory()
    recipe = recipe_of(base, changes)
    step = our_side(recipe, "cpu")(make_batch(recipe, 1, 8), "float32")
    start = time.process_time()
    loss = step()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps([loss, time.process_time() - start, memory]))


def measure_alone(base: str, changes: Sequence[str]) -> tuple[float, float, float]:
    script = f"from means import step_alone; step_alone({base!r}, {list(changes)!r})"
    done = subprocess.run([sys.executable, "-c", script], cwd=sys.path[0], capture_output=True, text=True, check=True)
    loss, seconds, memory = json.loads(done.stdout.splitlines()[-1])
    return loss, seconds, memory


def last_blocks(results: Results, repeats: int) -> None:
    """MobileSAM with adapters on its last blocks, against adapters on all."""
    base = "mobile_sam"
    blocks = len(encoder_blocks(random_base(base)))
    counts = (blocks, blocks // 2, 2)
    recipes = [recipe_of(base, [f"adapter.last_blocks={count}"]) for count in counts]
    samples = make_batch(recipes[0], 1, 8)
    steps = [our_side(recipe, "cpu")(samples, "float32") for recipe in recipes]
    check_same("last blocks", [step() for step in steps])
    times = best_of(steps, repeats)
    for count, taken in zip(counts[1:], times[1:], strict=True):
        results.add(f"training step, {base}: LoRA on the last {count} of {blocks} blocks against all", taken, times[0])


def vit_b(results: Results) -> None:
    """ViT-B with adapters on its last blocks, and with all its blocks computed again, against neither."""
    base = "sam_vit_b"
    sides = {
        "plain": [],
        "blocks computed again": ["train.checkpointing=true"],
        "LoRA on the last 6 of 12 blocks": ["adapter.last_blocks=6"],
        "LoRA on the last 2 of 12 blocks": ["adapter.last_blocks=2"],
    }
    found = {}
    for name, changes in sides.items():
        found[name] = measure_alone(base, changes)
        print(f"{base}, {name}: {found[name][1]:.1f} s, at most {found[name][2]:.2f} GB", flush=True)
    check_same(base, [loss for loss, _, _ in found.values()])
    for name in list(sides)[1:]:
        results.add(f"training step, {base}: {name} against all blocks kept", found[name][1], found["plain"][1])


def parts(results: Results, repeats: int) -> None:
    """Two tiles one by one against both at once: prompts alone, and with a dense decoder, whose loss does not split."""
    prompted = recipe_of("mobile_sam")
    dense = load_recipe("nuclora", ["train.precision=no"])
    # Of a crop of 320 pixels, where 512 become 768.
    size = 480
    crops = [augment(synthesize_tile(512, seed, seed), dense.augment, seed) for seed in (0, 1)]
    generator = np.random.default_rng(0)
    samples = {
        prompted: make_batch(prompted, 2, 8),
        dense: [make_sample(crop, dense, size=size, normalise="unit", generator=generator) for crop in crops],
    }
    for recipe, batch in samples.items():
        base = random_base(recipe.base)
        model = adapt(base, recipe.adapter, seed=0)
        if recipe.dense is not None:
            base.add_dense_decoder(recipe.dense, seed=0)
        loss = TileLoss(model, recipe.loss, recipe.prompts.chunk, recipe.dense).train()

        def side(at_once: int, loss: TileLoss = loss, batch: list[TrainingSample] = batch) -> Callable[[], float]:
            gradients = BatchGradients(loss, loss.dense is None, Accelerator(cpu=True), at_once)

            def step() -> float:
                loss.zero_grad()
                return float(gradients.compute(batch, lambda part: part, lambda: None))

            return step

        name = f"gradients of 2 tiles, {recipe.name} on {recipe.base}: one at once against both"
        results.compare(name, side(1), side(2), lambda one, other: abs(one - other) < 1e-4 * abs(other), repeats)


def optimisers(results: Results, repeats: int) -> None:
    """AdamW on what the study trains of MobileSAM, one tensor after the other, in lists, or in one kernel."""

    def side(foreach: bool, fused: bool) -> tuple[Callable[[], None], list[torch.nn.Parameter]]:
        model = adapt(random_base("mobile_sam"), recipe_of("mobile_sam").adapter, seed=0)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        torch.manual_seed(0)
        for parameter in trained:
            parameter.grad = torch.randn_like(parameter)
        return torch.optim.AdamW(trained, lr=1e-4, foreach=foreach, fused=fused).step, trained

    sides = {name: side(*form) for name, form in _FORMS.items()}
    for step, _ in sides.values():
        step()
    first, *others = (trained for _, trained in sides.values())
    if not all(
        torch.allclose(value, other, rtol=1e-5, atol=1e-7)
        for trained in others
        for value, other in zip(first, trained, strict=True)
    ):
        sys.exit("the optimisers take different steps, so their times say nothing")
    steps = [step for step, _ in sides.values()]
    times = dict(zip(sides, best_of(steps, repeats), strict=True))
    for name in list(_FORMS)[1:]:
        results.add(
            f"AdamW, the study's parameters of mobile_sam: {name} against for-loop", times[name], times["for-loop"]
        )


def main() -> None:
    given = parser(__doc__ or "", __file__).parse_args()
    results = Results()
    # First, because the most memory of a new process begins with what this one holds.
    vit_b(results)
    keep_freed_memory()
    last_blocks(results, given.repeats)
    parts(results, given.repeats)
    optimisers(results, given.repeats)
    results.finish(given.out)


if __name__ == "__main__":
    main()
