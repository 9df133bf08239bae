"""Means to a faster or smaller training step, each alone: last blocks, recomputing, a batch in parts, forms of AdamW.

Steps are those of `training.py`: the study's, on one tile of 1,024 pixels with eight boxes, in float32. Adapters begin
at zero, so what all sides train has the same gradients, which is checked. A ViT-B takes its steps in processes of its
own, whose most memory is measured too; everything else is timed in turn.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from common import Results, best_of, parser
from gradients import Gradients, apart, gradients
from nuclora.allocator import keep_freed_memory
from nuclora.data.augment import augment
from nuclora.data.synthetic import synthesize_tile
from nuclora.inference.slides import peak_mb
from nuclora.models.lora import adapt, encoder_blocks
from nuclora.recipe import Recipe, load_recipe
from nuclora.training.gradients import BatchGradients
from nuclora.training.samples import TrainingSample, make_sample
from nuclora.training.step import TileLoss
from plain_sam import random_base
from training import make_batch, our_side

# Of gradients in float32, of which one side may sum in another order.
_MOST_APART = 2e-3
# Of AdamW: whether in lists, whether in one kernel.
_FORMS = {"for-loop": (False, False), "foreach": (True, False), "fused": (False, True)}


def recipe_of(base: str, changes: Sequence[str] = ()) -> Recipe:
    return load_recipe(
        "paper", [f"base={base}", "adapter.dropout=0", "prompts.box_share=1", "prompts.per_tile=8", *changes]
    )


def check_same(name: str, sides: Sequence[Gradients]) -> None:
    """See that all sides have the same gradients of what all of them train."""
    common = set.intersection(*(set(side) for side in sides))
    first, *others = ({key: side[key] for key in common} for side in sides)
    if (far := max(apart(other, first) for other in others)) > _MOST_APART:
        sys.exit(f"{name}: the gradients are {far:.1e} apart, so the times say nothing")


def step_alone(base: str, changes: Sequence[str], repeats: int, out: str) -> None:
    """Save a first step's gradients, and print the seconds of the best that follow and the most memory of all."""
    keep_freed_memory()
    recipe = recipe_of(base, changes)
    side = our_side(recipe, "cpu")
    step = side.make(make_batch(recipe, 1, 8), "float32")
    torch.save(gradients(side.model, step), out)
    (seconds,) = best_of([step], repeats)
    print(json.dumps([seconds, peak_mb() / 1e3]))


def measure_alone(base: str, changes: Sequence[str], repeats: int) -> tuple[Gradients, float, float]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "gradients.pt"
        script = f"from means import step_alone; step_alone({base!r}, {list(changes)!r}, {repeats}, {str(out)!r})"
        done = subprocess.run([sys.executable, "-c", script], cwd=sys.path[0], stdout=subprocess.PIPE, check=True)
        seconds, memory = json.loads(done.stdout.splitlines()[-1])
        return torch.load(out), seconds, memory


def last_blocks(results: Results, repeats: int) -> None:
    """MobileSAM with adapters on its last blocks, against adapters on all."""
    base = "mobile_sam"
    blocks = len(encoder_blocks(random_base(base)))
    counts = (blocks, blocks // 2, 2)
    recipes = [recipe_of(base, [f"adapter.last_blocks={count}"]) for count in counts]
    samples = make_batch(recipes[0], 1, 8)
    sides = [our_side(recipe, "cpu") for recipe in recipes]
    steps = [side.make(samples, "float32") for side in sides]
    check_same("last blocks", [gradients(side.model, step) for side, step in zip(sides, steps, strict=True)])
    times = best_of(steps, repeats)
    for count, taken in zip(counts[1:], times[1:], strict=True):
        results.add(f"training step, {base}: LoRA on the last {count} of {blocks} blocks against all", taken, times[0])


def vit_b(results: Results, repeats: int) -> None:
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
        found[name] = measure_alone(base, changes, repeats)
        print(f"{base}, {name}: {found[name][1]:.1f} s, at most {found[name][2]:.2f} GB", flush=True)
    check_same(base, [first for first, _, _ in found.values()])
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
            whole = BatchGradients(loss, loss.dense is None, Accelerator(cpu=True), at_once)

            def step() -> float:
                loss.zero_grad()
                return float(whole.compute(batch, lambda part: part, lambda: None))

            return step

        name = f"gradients of 2 tiles, {recipe.name} on {recipe.base}: one at once against both"
        one, both = side(1), side(2)
        check_same(name, [gradients(loss, one), gradients(loss, both)])
        results.add(name, *best_of([one, both], repeats))


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
    vit_b(results, given.repeats)
    keep_freed_memory()
    last_blocks(results, given.repeats)
    parts(results, given.repeats)
    optimisers(results, given.repeats)
    results.finish(given.out)


if __name__ == "__main__":
    main()
