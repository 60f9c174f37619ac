"""What one call of a spiking network knows: the stretch of time that its neurons see, and what they carry to the next one.

It belongs to the call, not to the modules: a network that several threads share, or a replica of it, answers each call as if
it was alone. The neurons ask for the call that runs them.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nbsnn.errors import ConversionError

Stage = Literal["rest", "drive", "drain", "mean"]


@dataclass
class State:
    """Of one neuron layer, between two windows: [B, ...] membranes and net counts; its bias current, [1, ...] or [T, ...]."""

    membrane: Tensor | None = None
    count: Tensor | None = None
    bias: Tensor | float = 0.0


@dataclass(eq=False)
class Call:
    """State of one call.

    Attributes:
        timesteps: T, the steps of a window.
        stage: "rest" (no image, no spikes: what arrives is bias alone), "drive" (the image is on), "drain" (image and bias are
            off, and neurons finish what they owe), or "mean" (no time: one pass over currents averaged over the window).
        keep_counts: whether the net counts of all neurons are wanted.
        answer: in the stage "mean", what a neuron layer makes of its mean current [B, ...].
        states: of the layers that were called.
        fired: [T, B] bool per layer, of this window.
    """

    timesteps: int
    stage: Stage = "drive"
    keep_counts: bool = False
    answer: Callable[[Any, Tensor], Tensor] | None = None
    states: dict[nn.Module, State] = field(default_factory=dict)
    fired: list[Tensor] = field(default_factory=list)

    def begin(self, stage: Stage) -> "Call":
        """Start a window, and return the call."""
        self.stage = stage
        self.fired = []
        return self

    def state_of(self, neuron: nn.Module) -> State:
        """The state of a layer, empty at first."""
        return self.states.setdefault(neuron, State())

    def activity(self) -> Tensor:
        """[T, B] bool: did any neuron of this image fire in this step of the window?"""
        return torch.stack(self.fired).any(0)


_thread = threading.local()  # .call: what runs here; torch.compile sees through this, and not through a context variable


@contextmanager
def running(call: Call) -> Iterator[Call]:
    """While open, neurons that run in this thread belong to `call`."""
    before = getattr(_thread, "call", None)
    _thread.call = call
    try:
        yield call
    finally:
        _thread.call = before


def current_call() -> Call:
    """The call that runs here.

    Raises:
        ConversionError: a neuron was called by itself.
    """
    call: Call | None = getattr(_thread, "call", None)
    if call is None:
        raise ConversionError(
            "a neuron steps within a call of its SpikingNetwork; call that, not its .network or a layer of it"
        )
    return call
