"""The device that a network runs on, by name; and the name of the processor."""

import platform
import re
from pathlib import Path

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


def cpu_flags() -> frozenset[str]:
    """Instruction-set flags in Linux's names; empty if unknown."""
    return frozenset(_cpu_entry("flags", "Features").split())


def cpu_model() -> str:
    """Name of the processor; its architecture if unknown."""
    return _cpu_entry("model name").strip() or platform.processor() or platform.machine()


def _cpu_entry(*names: str) -> str:
    """The first entry of one of these names in Linux's description of the processor; empty if there is none."""
    path = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2] for line in lines if line.startswith(names)), "")
