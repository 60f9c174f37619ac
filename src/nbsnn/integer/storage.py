"""Integer networks in files: every number in safetensors, the structure in a JSON header, a hash over both."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbsnn.errors import CheckpointError
from nbsnn.integer.checking import check_program
from nbsnn.integer.program import Branch, Flatten, Head, Pixels, Program, SumPool, Unit
from nbsnn.tensorfile import FORMAT_VERSION, Header, content_hash, read_tensors, write_tensors

_CLASSES = {cls.__name__: cls for cls in (Program, Pixels, Unit, SumPool, Flatten, Head, Branch)}


def save_program(path: Path, program: Program) -> None:
    """Write a program, whole or not at all."""
    header, tensors = described(program)
    write_tensors(path, tensors, header)


def described(program: Program) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors of a program's file."""
    tensors: dict[str, Tensor] = {}
    header = {
        "format": FORMAT_VERSION, "form": "integer", "program": _encode(program, "program", tensors),
        "model": program.origin.get("model"), "recipe": program.origin.get("recipe"),
        "versions": {"nbsnn": metadata.version("nbsnn"), "torch": torch.__version__},
    }  # fmt: skip
    return header | {"content_hash": content_hash(header, tensors)}, tensors


def load_program(path: Path) -> Program:
    """Read a program and check that it is what was written."""
    header, tensors = read_tensors(path)
    return program_from(header, tensors, source=str(path))


def program_from(header: Header, tensors: Mapping[str, Tensor], *, source: str) -> Program:
    """The program that a file's header and tensors hold.

    Raises:
        CheckpointError: of another form, without a hash (which `read_tensors` checks), or not consistent.
    """
    if header.get("form") != "integer":
        raise CheckpointError(f"{source}: holds a {header.get('form')} network; make an integer one of it with nbsnn.lower")
    if "content_hash" not in header:
        raise CheckpointError(f"{source}: has no hash of its content; lower the network anew")
    try:
        program = _decode(header["program"], tensors)
        check_program(program)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{source}: not a valid integer network ({error}); lower it anew") from None
    assert isinstance(program, Program)
    return program


def moved(program: Program, device: torch.device) -> Program:
    """The program with its tensors on a device."""
    result: Program = _mapped(program, lambda tensor: tensor.to(device))
    return result


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_mapped(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{name: _mapped(getattr(value, name), change) for name in _given(value)})
    return value


def _given(value: Any) -> list[str]:
    """Names of the fields that a dataclass is made from; what engines prepare is none of them."""
    return [f.name for f in fields(value) if f.init]


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Plain values; tensors go to `tensors` under their place in the structure."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, tuple):
        return [_encode(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        stored = {key: _encode(getattr(value, key), f"{name}.{key}", tensors) for key in _given(value)}
        return {"class": type(value).__name__} | stored
    return value


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, tensors) for item in value)
    if isinstance(value, dict) and "tensor" in value:
        return tensors[value["tensor"]]
    if isinstance(value, dict) and "class" in value:
        cls = _CLASSES[value["class"]]
        return cls(**{key: _decode(item, tensors) for key, item in value.items() if key != "class"})
    return value
