"""The device that a network runs on, by name."""

import re

import torch

from nbsnn.distributed import local_rank, started_by_torchrun
from nbsnn.errors import ConfigError, shown

_DEVICE = re.compile(r"cpu|mps|cuda(:[0-9]{1,3})?")


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is this process's CUDA device, or else the CPU; `cuda` under torchrun is the one with the process's local rank.

    Raises:
        ConfigError: no such device, or torch does not see it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and started_by_torchrun():
        name = f"cuda:{local_rank()}"
    if not _DEVICE.fullmatch(name):
        raise ConfigError(f"device={shown(name)}: choose auto, cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # torch's: no such index, built without it, no such backend
        raise ConfigError(f"device={name}: torch sees no such device here; use device=cpu") from None
    return device
