"""The moving average of the weights that train."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

# So that the first steps, far from where the training ends, are soon forgotten.
_WARM_UP = 10


class MovingAverage:
    """Exponential moving average of a model's trained parameters (Polyak & Juditsky 1992).

    Args:
        model: Whose trained parameters are averaged.
        decay: Share of the old average that each step keeps; less in the first steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._model = model
        self.state = {name: parameter.detach().clone() for name, parameter in self._trained()}

    def update(self, step: int) -> None:
        """Take in the parameters after a step.

        Args:
            step: Steps done before this one.
        """
        decay = min(self.decay, (step + 1) / (step + _WARM_UP))
        # All at once: one by one they are hundreds of operations, which a GPU waits for.
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(list(self.state.values()), [parameter for _, parameter in self._trained()], step)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :attr:`state` was."""
        for name, value in state.items():
            self.state[name].copy_(value)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averaged parameters for a while."""
        parameters = dict(self._trained())
        trained = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        _copy(self.state, parameters)
        try:
            yield
        finally:
            _copy(trained, parameters)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self._model.named_parameters() if parameter.requires_grad)


def _copy(values: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
