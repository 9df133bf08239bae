"""A fold's checkpoint: one safetensors file, replaced in one step, never unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nuclora.errors import NucloraError
from nuclora.files import require_openable, write_atomic
from nuclora.training.average import MovingAverage


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name, on the CPU."""
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trained_state(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Put back what :func:`trained_state` gave.

    Raises:
        NucloraError: The names or shapes are not the model's.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    wrong = sorted(parameters.keys() ^ state.keys()) or sorted(
        name for name, value in state.items() if value.shape != parameters[name].shape
    )
    if wrong:
        raise NucloraError(
            f"not a checkpoint of this model: {wrong[0]} does not fit",
            path=path,
            mend="delete the fold's folder to train it anew",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    position: Mapping[str, Any],
    average: MovingAverage | None = None,
) -> None:
    """Write trained parameters, optimiser state and the position in the training, atomically.

    Args:
        path: The file.
        model: Whose trained parameters are kept.
        optimizer: Whose state is kept; none for a checkpoint that nobody trains on from.
        position: What JSON can hold: epoch, step and the like.
        average: The moving average of the weights, where there is one.
    """
    tensors = {f"model.{name}": value for name, value in trained_state(model).items()}
    if optimizer is not None:
        for index, slots in optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                tensors[f"optimizer.{index}.{slot}"] = value.detach().cpu().contiguous()
    if average is not None:
        tensors |= {f"average.{name}": value.cpu().contiguous() for name, value in average.state.items()}
    write_atomic(path, safetensors.torch.save(tensors, {"position": json.dumps(dict(position))}))


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    average: MovingAverage | None = None,
) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote into the model, the optimiser and the moving average.

    Returns:
        The position.

    Raises:
        NucloraError: The file is corrupt, of another model, or may not be read.
    """
    try:
        require_openable(path)
        with safetensors.safe_open(path, "pt") as file:
            position: dict[str, Any] = json.loads(file.metadata()["position"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise NucloraError(
            f"cannot read the checkpoint ({error})", path=path, mend="delete the fold's folder to train it anew"
        ) from error
    load_trained_state(model, _under(tensors, "model."), path)
    if average is not None:
        average.load(_under(tensors, "average."))
    if optimizer is not None:
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(tensors, "optimizer.").items():
            index, slot = name.split(".", 1)
            slots.setdefault(int(index), {})[slot] = value
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    return position


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
