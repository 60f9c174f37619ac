"""Which code runs an integer network here: the C++ kernel on a CPU, or torch operations anywhere."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch

from nbsnn.errors import ConfigError, unknown
from nbsnn.integer import engine_torch, native
from nbsnn.integer.program import Outcome, Program

Backend = Literal["auto", "native", "torch"]


class Code(NamedTuple):
    """The two functions of an engine, as `Outcome` describes them, its name, and the memory that an image in flight takes."""

    name: str
    run_counts: Callable[..., Outcome]
    run_spikes: Callable[..., Outcome]
    bytes_per_image: Callable[[Program], int]


TORCH = Code("torch", engine_torch.run_counts, engine_torch.run_spikes, engine_torch.bytes_per_image)
NATIVE = Code("native", native.run_counts, native.run_spikes, native.bytes_per_image)


def choose(program: Program, backend: Backend, device: torch.device) -> Code:
    """The code for a program on a device.

    Raises:
        ConfigError: unknown backend, or native where it cannot run; says why.
    """
    if backend not in get_args(Backend):
        raise ConfigError(unknown("backend", backend, get_args(Backend)))
    if backend == "torch":
        return TORCH
    here = device.type == "cpu"
    obstacle = native.why_not() if here else f"the network lies on {device}"
    if obstacle is None:
        return NATIVE
    if backend == "native":
        remedy = "use backend='torch'" if here else "move it with .to('cpu'), or use backend='torch'"
        raise ConfigError(f"the native engine cannot run: {obstacle}; {remedy}")
    return TORCH


def backend_facts() -> dict[str, str]:
    """Which code runs integer networks on this CPU, and why."""
    obstacle = native.why_not()
    if obstacle is not None:
        return {"engine": "torch", "native": obstacle}
    return {"engine": "native", "native": f"built; instruction sets here: {', '.join(native.targets())}"}
