"""An exponential moving average (EMA) of the weights, which is evaluated and saved instead of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightEMA:
    """The EMA of a network's parameters, including thresholds and scales; batch norm statistics are not averaged.

    Args:
        model: the network whose parameters are averaged.
        decay: of the average per step; smaller in the first steps, so that the initial values lose their weight.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.parameters = dict(model.named_parameters())
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update_(self) -> None:
        """Update the average with the current parameters."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(list(self.values.values()), [p.detach() for p in self.parameters.values()], self.steps)

    def state(self) -> dict[str, Tensor]:
        """The state for `restore_`: the average by name, and the number of steps."""
        return {**self.values, "steps": torch.tensor(self.steps)}

    def restore_(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state."""
        self.steps = int(state["steps"])
        for name, value in self.values.items():
            value.copy_(state[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context manager: the network has the averaged parameters."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.put_in_place_()
        try:
            yield
        finally:
            self._give_(own)

    def put_in_place_(self) -> None:
        """Copy the averaged parameters to the network."""
        self._give_(self.values)

    @torch.no_grad()
    def _give_(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
