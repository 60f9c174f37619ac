"""Programs as plain values plus named tensors, as stored in files, and back."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nbsnn.integer.frozen import thawed
from nbsnn.integer.maps import AxisMap, PlaneMap
from nbsnn.integer.nodes import Branch, Flatten, Head, MaxPool, Pixels, Resample, SumPool, Unit
from nbsnn.integer.program import Program
from nbsnn.integer.readout import Group, Output, Part, Readout

_CLASSES = {
    cls.__name__: cls
    for cls in (
        Program,
        Pixels,
        Unit,
        SumPool,
        Resample,
        MaxPool,
        Flatten,
        Head,
        Branch,
        PlaneMap,
        AxisMap,
        Readout,
        Output,
        Part,
        Group,
    )
}
_FREE = "origin"  # a field of plain values, which are not converted


def encode(program: Program) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Plain values, in which {"tensor": NAME} stands for each tensor, and the tensors, named by their path in the structure."""
    tensors: dict[str, Tensor] = {}
    result: dict[str, Any] = _encoded(program, "program", tensors)
    return result, tensors


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Program:
    """The inverse of `encode`.

    Args:
        value: a program as checked by `nbsnn.schema`.
        tensors: exactly those named in it.
    Raises:
        ValueError: a tensor is missing, has another path than its name, or is not used.
    """
    rest = dict(tensors)
    program: Program = _decoded(value, "program", rest)
    if rest:
        raise ValueError(f"the tensor {next(iter(rest))} is not used")
    return program


def moved(program: Program, device: torch.device) -> Program:
    """The program with its tensors on a device."""
    result: Program = _mapped(program, lambda tensor: thawed(tensor).to(device))
    return result


def _given(value: Any) -> list[str]:
    """Names of the fields that a dataclass is made from, without the cache of backends."""
    return [f.name for f in fields(value) if f.init]


def _encoded(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = thawed(value)
        return {"tensor": name}
    if isinstance(value, tuple):
        return [_encoded(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        stored = {key: _encoded(getattr(value, key), f"{name}.{key}", tensors) for key in _given(value) if key != _FREE}
        free = {key: getattr(value, key) for key in _given(value) if key == _FREE}
        return {"class": type(value).__name__} | stored | free
    return value


def _decoded(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return tuple(_decoded(item, f"{name}.{index}", tensors) for index, item in enumerate(value))
    if isinstance(value, dict) and "tensor" in value:
        if value["tensor"] != name or name not in tensors:
            raise ValueError(f"the tensor {name} is missing")
        return tensors.pop(name)
    if isinstance(value, dict):
        items = {key: item for key, item in value.items() if key != "class"}
        made = {key: item if key == _FREE else _decoded(item, f"{name}.{key}", tensors) for key, item in items.items()}
        return _CLASSES[value["class"]](**made)
    return value


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_mapped(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{name: _mapped(getattr(value, name), change) for name in _given(value)})
    return value
