"""The integrate-and-fire neuron, the only module that knows time, and the clock that all neurons of a network share."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from nbsnn.quant.layers import QuantReLU, at_least
from nbsnn.spiking.functional import fold, integrate_and_fire, unfold

Neuron = Literal["signed", "unsigned"]
Schedule = Literal["fixed", "settle", "barrier"]


def tie_tolerance(dtype: torch.dtype) -> float:
    """Charge of the exact schedules beyond half a threshold, in units of it: above the rounding of sums, far below a spike.

    The quantizer they are compared with takes the same, so that a tie rounds alike in both.
    """
    return 1e-9 if dtype == torch.float64 else 1e-5


@dataclass
class Clock:
    """What a network tells its neurons about the chunk of time that they are about to see.

    `stage` is "rest" (no image, no spikes: what arrives is bias alone), "drive" (the image is on), or "drain" (image and
    bias are off, and neurons finish what they owe).
    """

    timesteps: int
    stage: Literal["rest", "drive", "drain"] = "drive"
    fired: list[Tensor] = field(default_factory=list)  # [T, B] bool per neuron layer, of this chunk

    def begin(self, stage: Literal["rest", "drive", "drain"]) -> None:
        """Start a chunk."""
        self.stage = stage
        self.fired = []

    def activity(self) -> Tensor:
        """[T, B] bool: did any neuron of this image fire in this step of the chunk?"""
        return torch.stack(self.fired).any(0)


class IFNeuron(nn.Module):
    """The spiking form of a `QuantReLU`: current in, spikes · height out, time folded into the batch.

    A spike's height is θ·T/L, which is θ when the layer's own 2^b − 1 = L levels are the network's T; the firing threshold is
    the same number. So a count of q means q·θ/L on average over T steps, as in the quantized network.
    """

    def __init__(self, act: QuantReLU, clock: Clock, *, neuron: Neuron, schedule: Schedule) -> None:
        super().__init__()
        self.threshold = act.threshold
        self.bits, self.levels = act.bits, act.levels
        self.clock, self.neuron, self.schedule = clock, neuron, schedule
        self.reset()

    def reset(self) -> None:
        """Forget membranes, counts and bias currents."""
        self._membrane: Tensor | None = None
        self._count: Tensor | None = None
        self._bias: Tensor | None = None

    def height(self) -> Tensor:
        """Scalar: the height of a spike and the threshold that releases it."""
        return at_least(self.threshold) * (self.clock.timesteps / self.levels)

    def forward(self, current: Tensor) -> Tensor:
        if self.clock.stage == "rest":
            self._bias = current
            return torch.zeros_like(current)
        sequence = unfold(current, self.clock.timesteps)
        if self.clock.stage == "drain":
            assert self._bias is not None
            sequence = sequence - self._bias
        spikes = self._fire(sequence)
        if self.schedule == "settle":
            self.clock.fired.append((spikes != 0).flatten(2).any(2))
        return fold(spikes * self.height())

    def _fire(self, sequence: Tensor) -> Tensor:
        height = self.height()
        if self.schedule == "fixed":
            return integrate_and_fire(sequence, height, signed=self.neuron == "signed")
        if self._membrane is None:
            charge = height * (0.5 + tie_tolerance(sequence.dtype))
            self._membrane, self._count = charge.expand(sequence.shape[1:]), torch.zeros_like(sequence[0])
        if self.schedule == "barrier":
            # The whole window is integrated in silence, then given out evenly, as a constant current would.
            even = sequence.mean(0, keepdim=True).expand_as(sequence)
            return integrate_and_fire(even, height, signed=False, cap=self.levels, membrane=self._membrane)
        spikes = integrate_and_fire(sequence, height, signed=True, cap=self.levels, membrane=self._membrane, count=self._count)
        # Conservation of charge gives the state in which the next chunk finds the neuron.
        fired = spikes.sum(0)
        self._membrane = self._membrane + sequence.sum(0) - fired * height
        self._count = self._count + fired if self._count is not None else fired
        return spikes

    def extra_repr(self) -> str:
        return f"bits={self.bits}, neuron={self.neuron}, schedule={self.schedule}"
