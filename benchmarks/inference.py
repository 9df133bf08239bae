"""Nuclei of a tile from end to end on a CPU: ours against the network in its published form, eager and in float32.

The shipped adapter, whose nuclei are compared, and the recipe `nuclora` on MobileSAM with random weights, whose maps
are: the time does not depend on the weights, but for the decoding. Post-processing is part of every side.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from common import Results, best_of, parser
from nuclora.data.synthetic import ORGANS, synthesize_tile
from nuclora.inference.loading import Backend, load_model
from nuclora.inference.openvino import OpenVinoNetwork, convert
from nuclora.inference.predictor import Predictor
from nuclora.inference.quantize import quantize_adapter
from nuclora.metrics import score
from nuclora.models.adapter import shipped_adapter
from nuclora.models.precision import Precision, is_fast_in_bfloat16
from nuclora.recipe import EvaluateSettings, load_recipe
from plain_sam import as_published, random_base

SIDES: dict[str, tuple[Backend, Precision]] = {
    "PyTorch, float32": ("torch", "no"),
    "PyTorch, bf16": ("torch", "bf16"),
    "OpenVINO, float32": ("openvino", "no"),
    "OpenVINO, bf16": ("openvino", "bf16"),
    "OpenVINO, int8": ("openvino", "int8"),
}
# Panoptic quality against the reference's nuclei, and share of each map's range by precision.
_LEAST_PQ = 0.9
_MOST_APART: dict[Precision, float] = {"no": 1e-3, "bf16": 0.1}
# What 8 bits are chosen on, other tiles than the one that is timed: half of them calibrate, half check.
_CALIBRATED = range(100, 116)

Make = Callable[[Backend, Precision], Predictor]


def shipped(backend: Backend, precision: Precision) -> Predictor:
    """The shipped adapter, as `nuclora predict` loads it."""
    if precision != "int8":
        return load_model(shipped_adapter(), device="cpu", backend=backend, precision=precision, prompts=False)
    with tempfile.TemporaryDirectory() as folder:
        for seed in _CALIBRATED:
            Image.fromarray(synthesize_tile(512, seed, ORGANS[seed % len(ORGANS)]).image).save(f"{folder}/{seed}.png")
        quantize_adapter(shipped_adapter(), [folder], Path(folder) / "int8")
        return load_model(Path(folder) / "int8", device="cpu", backend=backend, precision=precision, prompts=False)


def mobile_sam(backend: Backend, precision: Precision) -> Predictor:
    """The recipe `nuclora` on MobileSAM with random weights, which is no adapter to be quantised."""
    recipe = load_recipe("nuclora")
    model = random_base("mobile_sam")
    assert recipe.dense is not None
    assert recipe.input.size is not None
    model.add_dense_decoder(recipe.dense, seed=0)
    return Predictor(
        model,
        input_size=recipe.input.size,
        normalise="imagenet",
        dense=recipe.dense,
        settings=recipe.evaluate,
        precision=precision,
        network=OpenVinoNetwork(convert(model, recipe.input.size, recipe.dense.window), precision)
        if backend == "openvino"
        else None,
    )


def plain(make: Make) -> Predictor:
    """The same with the encoder in its published form."""
    return as_published(make("torch", "no"))


def sides_of(make: Make) -> dict[str, tuple[Backend, Precision]]:
    """What this machine can compute, and this model."""
    fast = is_fast_in_bfloat16(torch.device("cpu"))
    return {
        side: options
        for side, options in SIDES.items()
        if not (options == ("openvino", "bf16") and not fast) and not (options[1] == "int8" and make is mobile_sam)
    }


def agree(there: NDArray[np.float32], here: NDArray[np.float32], precision: Precision) -> bool:
    """Each map within a share of its own range: offsets are many times as large as the others."""
    apart, wide = np.abs(there - here).max(axis=(1, 2)), np.ptp(there, axis=(1, 2))
    return bool(np.all(apart <= _MOST_APART[precision] * wide))


def compare(results: Results, name: str, make: Make, image: NDArray[np.uint8], views: int, repeats: int) -> None:
    """Time all sides in turn, after a look at what they find."""
    predictors = {"the plain form": plain(make)}
    sides = sides_of(make)
    for side, options in sides.items():
        began = time.perf_counter()
        predictors[side] = make(*options)
        print(f"{name}, {side}: ready after {time.perf_counter() - began:.1f} s")
    settings = predictors["the plain form"].settings
    settings = EvaluateSettings.model_validate(
        settings.model_dump() | {"decode": settings.decode.model_dump() | {"views": views}}
    )
    expected = predictors["the plain form"]
    for side in sides:
        predictor = predictors[side]
        if make is shipped:
            same = score(expected.nuclei(image, settings).labels, predictor.nuclei(image, settings).labels)["pq"]
            print(f"{name}, {side}: PQ {same:.3f} against the plain form's nuclei")
            agrees = same >= _LEAST_PQ
        else:
            agrees = agree(expected.maps(image, 1).values, predictor.maps(image, 1).values, sides[side][1])
        if not agrees:
            sys.exit(f"{name}, {side}: other nuclei than the plain form's, so its time says nothing")
    calls = [functools.partial(predictor.nuclei, image, settings) for predictor in predictors.values()]
    times = dict(zip(predictors, best_of(calls, repeats), strict=True))
    reference = times.pop("the plain form")
    for side, seconds in times.items():
        results.add(f"predict, {name}, {views} views: {side}", seconds, reference)


def main() -> None:
    options = parser(__doc__ or "", __file__)
    options.add_argument("--views", type=int, default=4, choices=[1, 2, 4, 8])
    given = options.parse_args()
    results = Results()
    image = synthesize_tile(512, 1, 1).image
    compare(results, "the shipped adapter", shipped, image, given.views, given.repeats)
    compare(results, "MobileSAM", mobile_sam, image, given.views, given.repeats)
    results.finish(given.out)


if __name__ == "__main__":
    main()
