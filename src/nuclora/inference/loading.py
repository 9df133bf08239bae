"""Adapters and bases from disk, ready for images and prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from nuclora.errors import NucloraError, require_choice
from nuclora.inference.predictor import PROMPTS_AT_ONCE, DenseNetwork, Predictor, base_of
from nuclora.models.adapter import load_adapter, read_card, read_recipe, tuned_settings
from nuclora.models.bases import BASES
from nuclora.models.checkpoints import load_base
from nuclora.models.dense_adapter import load_dense_adapter
from nuclora.models.dense_sam import DenseSam
from nuclora.models.precision import PRECISIONS, Precision, is_fast_in_bfloat16, resolve_precision
from nuclora.models.preprocess import Normalise
from nuclora.recipe import AskedPrecision, EvaluateSettings

if TYPE_CHECKING:
    from peft import PeftModel

Backend = Literal["torch", "openvino"]
BACKENDS: tuple[Backend, ...] = ("torch", "openvino")


def load_model(
    source: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    precision: Precision | AskedPrecision = "no",
    input_size: int | None = None,
    backend: Backend = "torch",
    prompts: bool = True,
) -> Predictor:
    """Load an adapter, or a base as it came, ready for prompts.

    Args:
        source: Folder of an adapter, or name of a base (`mobile_sam`, `sam_vit_b`, ...).
        weights: The base's weights; by default they are looked for.
        device: Where to compute; by default CUDA if there is any, else the CPU.
        precision: `bf16` or `fp16` computes in it where that is safe; `auto` in `bf16` where the device is fast in it;
            `int8` is for OpenVINO and an adapter of :func:`nuclora.inference.quantize.quantize_adapter`; what is not in
            8 bits is in `bf16` where the processor is fast in it.
        input_size: Side of the square input; by default the one that the model was trained on.
        backend: `openvino` computes maps faster on a CPU (extra `openvino`), and takes seconds to start.
        prompts: False may leave out what only prompts need: an adapter with a dense decoder is then ready in half
            the time, and finds nuclei by it alone.

    Returns:
        The predictor.

    Raises:
        NucloraError: No such adapter or base, its weights are not at hand, or they are not those it was trained on;
            or the backend is not installed or does not compute so; or no such precision, backend, device or input
            size.
    """
    require_choice("precision", precision, (*PRECISIONS, "auto"))
    require_choice("backend", backend, BACKENDS)
    if input_size is not None and input_size < 1:
        raise NucloraError(f"an input size of {input_size} pixels", mend="leave it out for the trained one")
    path = Path(weights) if weights is not None else None
    place = _usable(device) if device else usual_device()
    if str(source) in BASES:
        base = load_base(str(source), path)
        model: DenseSam | PeftModel = base.model
        trained_size: int = base.input_size
        normalise: Normalise = base.normalise
        recipe, settings, calibration, microns = None, EvaluateSettings(), [], None
    else:
        folder = Path(source)
        without_prompts = None if prompts else load_dense_adapter(folder, path)
        model = without_prompts or load_adapter(folder, path).model
        card = read_card(folder)
        trained_size, normalise, calibration = card.input_size, card.normalise, card.calibration
        microns = card.microns_per_pixel
        recipe = read_recipe(folder, card)
        settings = tuned_settings(card, recipe)
    chosen = resolve_precision(precision, place)
    size = input_size or trained_size
    dense = recipe.dense if recipe else None
    require_precision(chosen, backend, place)
    if chosen == "int8":
        _require_int8(dense is not None, size == trained_size)
    network: DenseNetwork | None = None
    if backend == "openvino" and dense is not None:
        if place.type != "cpu":
            raise NucloraError(f"OpenVINO is for CPUs, and this computes on {place}", mend="--backend torch")
        network = _openvino_network(model, Path(source), size, dense.window, chosen)
    return Predictor(
        model,
        input_size=size,
        normalise=normalise,
        device=place,
        precision=chosen,
        chunk=recipe.prompts.chunk if recipe else PROMPTS_AT_ONCE,
        multimask_points=recipe is None,
        iou_trained=recipe is None or recipe.loss.iou > 0,
        dense=dense,
        settings=settings,
        calibration=calibration,
        network=network,
        microns_per_pixel=microns,
    )


def usual_device() -> torch.device:
    """Where models compute unless told otherwise: CUDA if there is any, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _usable(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    # Torch built without CUDA asserts that it has it; of some devices it imports a module that is not there.
    except (RuntimeError, AssertionError, ImportError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NucloraError(f"cannot compute on {device} ({why})", mend="leave the device out, or name cpu") from error
    return place


def require_precision(precision: Precision, backend: Backend, place: torch.device | None) -> None:
    """See that a backend computes in a precision, and in no time that is absurd.

    Args:
        precision: What is to be computed in.
        backend: What runs the network.
        place: Where; None where that is not known yet, as of the machines of a cluster.

    Raises:
        NucloraError: It does not.
    """
    if precision == "int8" and backend != "openvino":
        raise NucloraError("int8 is OpenVINO's alone", mend="add --backend openvino")
    if place is None:
        return
    if precision == "fp16" and place.type == "cpu":
        raise NucloraError("fp16 is for GPUs: a processor is a hundred times slower in it", mend="--precision no")
    if precision == "bf16" and backend == "openvino" and not is_fast_in_bfloat16(place):
        raise NucloraError("OpenVINO is ten times slower in bf16 on this processor", mend="--precision no or int8")


def rest_of_int8() -> Precision:
    """What the parts of a network in 8 bits that are not in 8 bits are computed in here: a third of its time."""
    return "bf16" if is_fast_in_bfloat16(torch.device("cpu")) else "no"


def _openvino_network(
    model: DenseSam | PeftModel, folder: Path, size: int, window: int, precision: Precision
) -> DenseNetwork:
    # Only here: its import is not for every start.
    from nuclora.inference.openvino import OpenVinoNetwork, convert, read_int8

    if precision == "int8":
        return OpenVinoNetwork(read_int8(folder, read_card(folder).int8), rest_of_int8())
    return OpenVinoNetwork(convert(base_of(model), size, window), precision)


def _require_int8(is_dense: bool, own_size: bool) -> None:
    if not is_dense:
        raise NucloraError("int8 is for adapters with a dense decoder", mend="choose another --precision")
    if not own_size:
        raise NucloraError("the network in int8 has one input size", mend="leave the input size out")
