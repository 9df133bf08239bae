"""A training step: ours against `transformers` and PEFT in the plain loop, on the same tiles, boxes and weights.

On a CPU MobileSAM by default; on a GPU also the ViTs: `--base sam_vit_h --device cuda`. The step is the study's: LoRA
of rank 16 on `qkv` beside the whole mask decoder, a box a nucleus, binary cross-entropy at 1,024 pixels; without
dropout, which would make the two sides differ. The gradients of all that trains are compared first. Where memory does
not hold a batch for the plain loop, it takes half as many tiles, and the time of a tile counts.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from common import Results, best_of, parser
from gradients import Gradients, apart, gradients, start_alike
from nuclora.allocator import keep_freed_memory
from nuclora.data.synthetic import synthesize_tile
from nuclora.errors import is_out_of_memory
from nuclora.inference.slides import peak_mb
from nuclora.models.bases import BASES
from nuclora.models.compiled import compile_blocks
from nuclora.models.lora import adapt
from nuclora.recipe import Recipe, load_recipe
from nuclora.training.samples import TrainingSample, make_sample
from nuclora.training.step import TileLoss
from plain_sam import plain_adapt, plain_sam, plain_step, random_base

Step = Callable[[], float]
Make = Callable[[Sequence[TrainingSample], str], Step]
"""A step on samples in a precision, of a model that all steps share."""
# Of the gradients: float32 sums in another order, and bfloat16's eight bits. With the boxes of another tile the
# gradients of MobileSAM are .3 apart, with its pixels .13, with its truth .005, since few of a tile's pixels are a
# nucleus: bfloat16 leaves the last to float32.
_TOLERANCE = {"float32": 2e-3, "bf16": 0.1}
_PROMPTS = 8
_PEAK_SIDE, _PEAK_ROUNDS = 8192, 20


@dataclass(frozen=True)
class Side:
    """A model, and the steps that train it."""

    model: nn.Module
    make: Make


@dataclass(frozen=True)
class Timed:
    """A side's step as it is timed.

    Attributes:
        step: The step.
        tiles: How many it takes; fewer than asked for where memory holds no more.
        memory_gb: Most that the side held, its weights included; of use on a GPU, where it can be told apart.
    """

    step: Step
    tiles: int
    memory_gb: float


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


def our_side(recipe: Recipe, device: str) -> Side:
    base = random_base(recipe.base, device=device)
    if recipe.train.checkpointing:
        base.vision_encoder.checkpoint_blocks()
    model = adapt(base, recipe.adapter, seed=0).to(device)
    start_alike(model)
    if recipe.train.compile:
        compile_blocks(base, torch.device(device))
    loss = TileLoss(model, recipe.loss, recipe.prompts.chunk).train()
    optimizer = torch.optim.AdamW((p for p in loss.parameters() if p.requires_grad), lr=0)

    def make(samples: Sequence[TrainingSample], precision: str) -> Step:
        batch = [sample.to(torch.device(device)) for sample in samples]

        def step() -> float:
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                value = loss(batch)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            return float(value.detach())

        return step

    return Side(model, make)


def their_side(recipe: Recipe, device: str) -> Side:
    ours = random_base(recipe.base, device=device)
    model = plain_adapt(plain_sam(ours).to(device), recipe.adapter, ours).to(device)
    start_alike(model)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0)

    def make(samples: Sequence[TrainingSample], precision: str) -> Step:
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

    return Side(model, make)


def largest(make: Make, samples: Sequence[TrainingSample], precision: str, device: str, static: float) -> Timed:
    """A side's step on as many of the samples as memory holds, which its first call, the warm-up, finds out."""
    tiles = len(samples)
    while True:
        try:
            step = make(samples[:tiles], precision)
            before = start_memory(device)
            step()
            return Timed(step, tiles, static + memory_gb(device) - before)
        except (MemoryError, RuntimeError) as error:
            if tiles == 1 or not is_out_of_memory(error):
                raise
        # Only here, where nothing holds the error's frames and with them the graph.
        tiles //= 2
        gc.collect()
        torch.cuda.empty_cache()


def start_memory(device: str) -> float:
    """What is held now, in GB; the most from here on is counted anew. On a CPU, where it cannot be, what was held."""
    if device == "cpu":
        return memory_gb(device)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 1e9


def memory_gb(device: str) -> float:
    """Most memory held so far: the device's, or this process's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return peak_mb() / 1e3


def peak_flops() -> float:
    """Operations a second of a large matrix product in bfloat16."""
    left, right = (torch.randn(_PEAK_SIDE, _PEAK_SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    (seconds,) = best_of([lambda: left @ right], _PEAK_ROUNDS, "cuda")
    return 2 * _PEAK_SIDE**3 / seconds


def main() -> None:
    options = parser(__doc__ or "", __file__)
    options.add_argument("--base", default="mobile_sam", choices=[name for name in BASES if name != "custom"])
    options.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options.add_argument("--tiles", type=int, default=2, help="Batch size.")
    options.add_argument("--compiled", choices=list(_TOLERANCE), help="Also ours with train.compile, in this.")
    options.add_argument("--prompts", type=int, default=_PROMPTS, help="Boxes a tile.")
    given = options.parse_args()
    on_gpu = given.device == "cuda"
    if on_gpu:
        # As on a CPU; else float32 has ten bits in convolutions.
        torch.backends.cudnn.allow_tf32 = False
    else:
        keep_freed_memory()
    changes = [f"base={given.base}", "adapter.dropout=0", "prompts.box_share=1", f"prompts.per_tile={given.prompts}"]
    recipe = load_recipe("paper", changes)
    both = tuple(_TOLERANCE)
    sides = {"reference": (their_side, recipe, both), "ours": (our_side, recipe, both)}
    if on_gpu:
        sides["ours, recomputed"] = (our_side, load_recipe("paper", [*changes, "train.checkpointing=true"]), both)
    if given.compiled:
        # In one precision: its blocks are compiled for each, which takes longer than all that is timed.
        sides["ours, compiled"] = (our_side, load_recipe("paper", [*changes, "train.compile=true"]), (given.compiled,))
    samples = make_batch(recipe, given.tiles, given.prompts)
    results = Results(given.device)
    timed: dict[str, Timed] = {}
    reference: Side | None = None
    expected: dict[int, Gradients] = {}
    for name, (build, settings, precisions) in sides.items():
        before = start_memory(given.device)
        side = build(settings, given.device)
        reference = reference or side
        static = start_memory(given.device) - before
        for precision in precisions:
            timed[f"{name} {precision}"] = largest(side.make, samples, precision, given.device, static)
            tiles = min(timed[f"{name} {precision}"].tiles, timed["reference float32"].tiles)
            if tiles not in expected:
                expected[tiles] = gradients(reference.model, reference.make(samples[:tiles], "float32"))
            far = apart(gradients(side.model, side.make(samples[:tiles], precision)), expected[tiles])
            print(f"{name} {precision}: gradients {far:.1e} from the plain loop's in float32", flush=True)
            if not far <= _TOLERANCE[precision]:
                sys.exit(f"{name} {precision}: other gradients than the plain loop's, so its time says nothing")
    calls = [side.step for side in timed.values()]
    times = dict(zip(timed, best_of(calls, given.repeats, given.device), strict=True))
    # Of the whole batch, for a side that holds fewer.
    times = {name: seconds * given.tiles / timed[name].tiles for name, seconds in times.items()}
    boxes = "" if given.prompts == _PROMPTS else f" of {given.prompts} boxes"
    for precision in _TOLERANCE:
        for theirs in _TOLERANCE:
            name = f"training step, {given.base}, {given.tiles} tiles{boxes}: {precision} against plain {theirs}"
            results.add(name, times[f"ours {precision}"], times[f"reference {theirs}"])
            if precision == given.compiled:
                results.add(f"{name}, compiled", times[f"ours, compiled {precision}"], times[f"reference {theirs}"])
    results.finish(given.out)
    if not on_gpu:
        print(f"most memory, all sides in one process: {memory_gb(given.device):.1f} GB")
        return
    with FlopCounterMode(display=False) as counter:
        timed["reference bf16"].step()
    a_tile = counter.get_total_flops() / timed["reference bf16"].tiles
    peak = peak_flops()
    print(f"{a_tile / 1e12:.2f} TFLOP a tile (the plain step's); {peak / 1e12:.0f} TFLOP/s in a product of matrices")
    for name, found in timed.items():
        rate = given.tiles / times[name]
        share = rate * a_tile / peak
        print(f"{name}: {rate:.2f} tiles/s, {share:.0%} of it, {found.memory_gb:.1f} GB with {found.tiles} at once")


if __name__ == "__main__":
    main()
