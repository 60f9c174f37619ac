"""What `nbsnn info` says: layers and sizes of a checkpoint, and what the package runs on."""

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nbsnn.data.dali import is_installed
from nbsnn.integer.backends import backend_facts
from nbsnn.quant.formats import read_weight_format
from nbsnn.tensorfile import Header

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Summary(NamedTuple):
    """Bytes of all tensors, learnable numbers, and a row (layer, weight shape, bits, detail) per weight and activation."""

    bytes: int
    parameters: int
    layers: list[tuple[str, str, str, str]]


def summarize(header: Header, tensors: Mapping[str, Tensor]) -> Summary:
    """The summary of a checkpoint as `read_tensors` gives it."""
    plan = header["plan"]
    layers = [
        (name, "×".join(map(str, tensor.shape)), *_format(plan.get(name)))
        for name, tensor in ((key.removesuffix(".weight"), t) for key, t in tensors.items() if key.endswith(".weight"))
        if tensor.dim() > 1
    ]
    acts = [
        (name, "-", f"{fmt['bits']} bits", f"threshold {float(tensors[f'{name}.threshold']):.4g}")
        for name, fmt in plan.items()
        if f"{name}.threshold" in tensors
    ]
    return Summary(
        sum(t.numel() * t.element_size() for t in tensors.values()),
        sum(t.numel() for key, t in tensors.items() if not key.endswith(_STATISTICS)),
        [*layers, *acts],
    )


def _format(entry: Mapping[str, Any] | None) -> tuple[str, str]:
    if entry is None:
        return "float", ""
    fmt = read_weight_format(entry)
    return f"{fmt.bits} bits", fmt.label


def system_facts() -> dict[str, Any]:
    """Versions, processor and devices."""
    return {
        "nbsnn": metadata.version("nbsnn"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        **{f"integer {key}": value for key, value in backend_facts().items()},
        "dali": "installed" if is_installed() else "not installed",
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
    }
