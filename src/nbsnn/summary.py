"""The content of `nbsnn info`: layers and sizes of a checkpoint; versions and devices."""

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nbsnn import fused
from nbsnn.checkpoint import rebuild
from nbsnn.data.dali import is_installed
from nbsnn.device import cpu_model
from nbsnn.integer.backends import backend_facts
from nbsnn.quant.formats import read_weight_format
from nbsnn.quant.packing import CODES, STEP
from nbsnn.recipe import ModelSpec
from nbsnn.tensorfile import Header

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Summary(NamedTuple):
    """Bytes of all tensors, learnable numbers, and a row (layer, weight shape, bits, detail) per weight and activation.

    The number of parameters is that of the network, not of the file: a packed weight counts with its unpacked size. `exact` is
        false if the file does not tell that size, because its network is not registered: some are then padding.
    """

    bytes: int
    parameters: int
    layers: list[tuple[str, str, str, str]]
    exact: bool


def summarize(header: Header, tensors: Mapping[str, Tensor], *, source: str, model: nn.Module | None = None) -> Summary:
    """Summarize a checkpoint read by `read_tensors`; `source` names the file in errors, `model` is the float network if known.

    Raises:
        CheckpointError: a packed network's codes do not fit it.
    """
    packed, plan = bool(header.get("packed")), header["plan"]
    known = model is not None or (header["model"] is not None and not ModelSpec(**header["model"]).needs_code)
    state = rebuild(header, tensors, source=source, model=model).state_dict() if packed and known else tensors
    rows, parameters = [], 0
    for key, tensor in state.items():
        layer, _, kind = key.rpartition(".")
        if key.endswith(CODES):
            layer = key.removesuffix(CODES)
            count = 8 * tensor.numel() // plan[layer]["bits"]
            rows.append((layer, f"{count:,} codes", *_format(plan[layer])))
        elif key.endswith(STEP):
            continue
        else:
            count = 0 if kind in _STATISTICS else tensor.numel()
        parameters += count
        if kind == "weight" and tensor.dim() > 1:
            rows.append((layer, "×".join(map(str, tensor.shape)), *_format(plan.get(layer))))
        elif kind == "weight" and f"{layer}.running_mean" in state:
            rows.append((layer, str(len(tensor)), "float", "batch norm"))
        elif kind == "threshold" and layer in plan:
            rows.append((layer, "-", f"{plan[layer]['bits']} bits", f"threshold {float(tensor):.4g}"))
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    return Summary(size, parameters, rows, not packed or known)


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
        "cpu": f"{cpu_model()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        **{f"integer {key}": value for key, value in backend_facts().items()},
        "fused quantizers": "native" if (reason := fused.obstacle()) is None else f"torch: {reason}",
        "dali": "installed" if is_installed() else "not installed",
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
    }
