"""The integrate-and-fire neuron; only it and the max pools between neurons depend on time."""

import torch
from torch import Tensor, nn

from nbsnn.errors import ConversionError
from nbsnn.quant.functional import at_least
from nbsnn.quant.layers import QuantReLU
from nbsnn.spiking.call import Call, current_call
from nbsnn.spiking.functional import fold, integrate_and_fire, unfold
from nbsnn.spiking.schedules import Neuron, Schedule, schedule_named

_HALF = (torch.float16, torch.bfloat16)


def refuse_half(schedule: Schedule, dtype: torch.dtype) -> None:
    """Raise an error for an exact schedule in half precision, whose sums can lose a spike."""
    if schedule.exact and dtype in _HALF:
        short = str(dtype).removeprefix("torch.")
        raise ConversionError(
            f"schedule={schedule.name!r} counts exactly, and {short} would break that; "
            "keep the network in float32 with .float(), or convert with schedule='fixed'"
        )


def check_precision(schedule: Schedule, network: nn.Module, device: torch.device) -> None:
    """Raise an error if an exact schedule would run in half precision: by the network's type, or by autocast on this device."""
    if schedule.exact and torch.is_autocast_enabled(device.type):
        raise ConversionError(
            f"schedule={schedule.name!r} counts exactly, and autocast would break that; call it outside torch.autocast, or "
            f"within torch.autocast({device.type!r}, enabled=False)"
        )
    for dtype in {parameter.dtype for parameter in network.parameters()}:
        refuse_half(schedule, dtype)


class IFNeuron(nn.Module):
    """The spiking form of a `QuantReLU`: current in, spikes · height out, time folded into the batch.

    A spike's height is θ·T/L, which is θ if the layer's 2^b − 1 = L levels equal the network's T; the firing threshold is the
    same number. So a count of q has the mean q·θ/L over T steps, as in the quantized network. The state between steps is in the
    `Call` that runs it.
    """

    def __init__(self, act: QuantReLU, *, timesteps: int, neuron: Neuron, schedule: str) -> None:
        super().__init__()
        self.threshold = act.threshold
        self.bits, self.levels, self.limit = act.bits, act.levels, act.limit
        self.timesteps, self.neuron, self.schedule = timesteps, neuron, schedule

    def clip(self) -> Tensor:
        """Scalar: the clipping level of the quantized activation, as there."""
        return at_least(self.threshold, most=self.limit)

    def height(self) -> Tensor:
        """Scalar: the height of a spike, which is also the firing threshold."""
        return self.clip() * (self.timesteps / self.levels)

    def forward(self, input: Tensor) -> Tensor:
        call, schedule = current_call(), schedule_named(self.schedule)
        refuse_half(schedule, input.dtype)
        if call.stage == "mean":
            assert call.answer is not None
            return call.answer(self, input)
        state = call.state_of(self)
        if call.stage == "rest":
            state.bias = input
            return torch.zeros_like(input)
        sequence = unfold(input, call.timesteps)
        if call.stage == "drain":
            sequence = sequence - state.bias
        spikes = self._fire(sequence, call, schedule)
        if schedule.windows is None:
            call.fired.append((spikes.abs() > 0).flatten(2).any(2))  # not != 0: NaN would never be silent
        return fold(spikes * self.height())

    def _fire(self, sequence: Tensor, call: Call, schedule: Schedule) -> Tensor:
        height, state = self.height(), call.state_of(self)
        signed, rule = self.neuron == "signed", schedule.rule
        start = (height * (0.5 + schedule.tie_tolerance(sequence.dtype))).expand(sequence.shape[1:])
        if schedule.order == "in turn":
            # Integrate the whole window without firing, then emit the count evenly, as under a constant current.
            even = sequence.mean(0, keepdim=True).expand_as(sequence)
            spikes = integrate_and_fire(even, height, signed=signed, cap=self.levels, membrane=start, rule=rule)
        else:
            start = start if state.membrane is None else state.membrane
            spikes = integrate_and_fire(
                sequence, height, signed=signed, cap=self.levels, membrane=start, count=state.count, rule=rule
            )
        if call.watch is not None:
            call.watch(self, start, sequence, spikes)
        if schedule.windows != 1 or call.keep_counts:
            fired = spikes.sum(0)
            state.count = fired if state.count is None else state.count + fired
        if schedule.windows != 1:
            # Conservation of charge gives the state for the next window.
            state.membrane = start + sequence.sum(0) - fired * height
        return spikes

    def extra_repr(self) -> str:
        return f"bits={self.bits}, neuron={self.neuron}, schedule={self.schedule}"
