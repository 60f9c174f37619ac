"""What a backend is: code that runs programs. All backends give the same bits; they differ in where they run, and how fast."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from nbsnn.integer.program import Outcome, Program
from nbsnn.naming import add_named
from nbsnn.spiking.schedules import Neuron

Engine = Literal["counts", "spikes"]


@dataclass(frozen=True)
class Request:
    """What is asked of a backend.

    Attributes:
        device: where the network lies.
        engine: "counts" or "spikes".
        neuron, schedule: of the spikes.
        keep_fired: whether the spikes of every neuron are wanted, those that were taken back included.
    """

    device: torch.device
    engine: Engine = "counts"
    neuron: Neuron = "signed"
    schedule: str = "fixed"
    keep_fired: bool = False


@dataclass(frozen=True)
class Backend:
    """One way to run a program, as a record of functions.

    Attributes:
        name: what users call it, as in `backend="torch"`.
        run_counts: (program, pixels, *, keep_counts=False) → `Outcome`.
        run_spikes: (program, pixels, *, neuron, schedule, keep_counts=False) → `Outcome`; with keep_fired=True where that is
            asked for. The caller has checked that pixels are [B, C, H, W] int32, contiguous, on the grid of `program.pixels`
            and where the network lies.
        bytes_per_image: (program) → what an image in flight takes; the caller splits batches by it.
        obstacle: (request) → why it cannot do what is asked here, or None. The reason ends with a remedy, if there is one
            beside another backend, in words that follow "; ".
    """

    name: str
    run_counts: Callable[..., Outcome]
    run_spikes: Callable[..., Outcome]
    bytes_per_image: Callable[[Program], int]
    obstacle: Callable[[Request], str | None] = lambda _request: None


BACKENDS: dict[str, Backend] = {}


def register(backend: Backend) -> Backend:
    """Make a backend known under its name, and return it.

    Raises:
        ConfigError: the name is taken.
    """
    return add_named(BACKENDS, "backend", backend.name, backend, taken=["auto"])
