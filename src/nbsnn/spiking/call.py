"""The state of one call of a spiking network: the current window of time, and what neurons store between windows.

The state belongs to the call, not to the modules, so several threads can use one network or its replicas at the same time.
Neurons look up the call that runs them.
"""

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nbsnn.errors import ConversionError

Stage = Literal["rest", "drive", "drain", "mean"]


@dataclass
class State:
    """A layer between two windows: of neurons, [B, ...] membranes, net counts, and the bias current, [1, ...] or [T, ...]; of a
    pool, the net counts that it was given.
    """

    membrane: Tensor | None = None
    count: Tensor | None = None
    bias: Tensor | float = 0.0


@dataclass(eq=False)
class Call:
    """State of one call.

    Attributes:
        timesteps: T, the steps of a window.
        stage: "rest" (no image, no spikes: currents are biases), "drive" (image and bias are on), "drain" (image and bias are
            off, neurons continue), or "mean" (no time: one pass over currents averaged over the window).
        keep_counts: whether to return the net counts of all neurons.
        answer: in the stage "mean", the function from a neuron layer and its mean current [B, ...] to its output.
        states: states of the layers that were called.
        visits: calls in this window, of the layers that may be called several times.
        fired: [T, B] bool per layer, of this window.
        watch: called by each neuron layer in each window with itself, its membranes [B, ...] at the start, its currents and its
            spikes, both [T, B, ...].
    """

    timesteps: int
    stage: Stage = "drive"
    keep_counts: bool = False
    answer: Callable[[Any, Tensor], Tensor] | None = None
    states: dict[Hashable, State] = field(default_factory=dict)
    visits: dict[nn.Module, int] = field(default_factory=dict)
    fired: list[Tensor] = field(default_factory=list)
    watch: Callable[[nn.Module, Tensor, Tensor, Tensor], None] | None = None

    def begin(self, stage: Stage) -> "Call":
        """Start a window, and return the call."""
        self.stage = stage
        self.fired = []
        self.visits = {}
        return self

    def state_of(self, neuron: nn.Module) -> State:
        """The state of a layer, initially empty."""
        return self.states.setdefault(neuron, State())

    def state_of_visit(self, layer: nn.Module) -> State:
        """The state of a layer that may be called several times in a window, in this one of its calls."""
        visit = self.visits[layer] = self.visits.get(layer, 0) + 1
        return self.states.setdefault((layer, visit), State())

    def activity(self) -> Tensor:
        """[T, B] bool: whether any neuron of an image fired in a step of the window."""
        return torch.stack(self.fired).any(0)


_thread = threading.local()  # .call: the running call; torch.compile supports this, but not a context variable


@contextmanager
def running(call: Call) -> Iterator[Call]:
    """Context manager: neurons that run in this thread use `call`."""
    before = getattr(_thread, "call", None)
    _thread.call = call
    try:
        yield call
    finally:
        _thread.call = before


def current_call() -> Call:
    """The running call of this thread.

    Raises:
        ConversionError: a neuron was called outside of its network.
    """
    call: Call | None = getattr(_thread, "call", None)
    if call is None:
        raise ConversionError(
            "a neuron steps within a call of its SpikingNetwork; call that, not its .network or a layer of it"
        )
    return call
