"""Backends: code that runs programs. All backends give the same bits; they differ in devices and speed."""

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
    """A request to a backend.

    Attributes:
        device: the network's device.
        engine: "counts" or "spikes".
        neuron, schedule: of the spikes.
        keep_fired: whether to return the spikes of every neuron, including cancelled ones.
    """

    device: torch.device
    engine: Engine = "counts"
    neuron: Neuron = "signed"
    schedule: str = "fixed"
    keep_fired: bool = False


@dataclass(frozen=True)
class Backend:
    """A backend, as a record of functions.

    Attributes:
        name: as in `backend="torch"`.
        run_counts: (program, pixels, *, keep_counts=False) → `Outcome`.
        run_spikes: (program, pixels, *, neuron, schedule, keep_counts=False) → `Outcome`; with keep_fired=True if requested.
            The caller has checked that pixels are [B, C, H, W] int32, contiguous, on the grid of `program.pixels` and on the
            network's device.
        bytes_per_image: (program) → memory of an image in flight; the caller splits batches accordingly.
        obstacle: (request) → why the request is not supported, or None. If there is a remedy other than another backend, the
            reason ends with "; " and the remedy.
    """

    name: str
    run_counts: Callable[..., Outcome]
    run_spikes: Callable[..., Outcome]
    bytes_per_image: Callable[[Program], int]
    obstacle: Callable[[Request], str | None] = lambda _request: None


BACKENDS: dict[str, Backend] = {}


def register(backend: Backend) -> Backend:
    """Register a backend under its name, and return it.

    Raises:
        ConfigError: the name is taken.
    """
    return add_named(BACKENDS, "backend", backend.name, backend, taken=["auto"])
