"""Integer networks as JSON and one binary file, for programs in any language; docs/json.md describes every field."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.errors import LoweringError
from nbsnn.export.registry import Exporter, ExportOptions, planned, register
from nbsnn.files import write_atomically, write_text
from nbsnn.integer.checking import check_numbers
from nbsnn.integer.frozen import thawed
from nbsnn.integer.maps import AxisMap
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.nodes import Branch, Flatten, Head, MaxPool, Node, Resample, SumPool, Unit
from nbsnn.integer.program import Program
from nbsnn.integer.readout import Group, Output

_FORMAT, _VERSION = "nbsnn network", 1
_ALIGNMENT = 8
_MOST_LISTED = 32  # values of a weight
_ORIGIN = ("model", "metrics", "recipe_hash", "source")


@checked_arguments
def export_json(
    path: str | Path,
    network: nn.Module | IntegerNetwork,
    *,
    example: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> int:
    """Write an integer network as JSON with its numbers in a binary file beside it, `NAME.bin`. See docs/json.md.

    Args:
        path: `NAME.json`.
        network: an integer network, or a quantized or spiking one, which is lowered.
        example, mean, std: as in `nbsnn.lower`, for a quantized network.
    Returns:
        Bytes of both files.
    Raises:
        ConfigError: another form, or a name that does not end with `.json`.
        ConversionError, LoweringError: the network cannot be lowered.
    """
    plan = planned(path, network, EXPORTER, ExportOptions(example=example, mean=mean, std=std))
    return sum(plan.write().files.values())


def described_network(program: Program) -> tuple[dict[str, Any], bytes]:
    """The plain values of a program, and the bytes of all tensors that they point to."""
    numbers = _Numbers()
    pixels = program.pixels
    described = {
        "timesteps": program.timesteps,
        "image": {
            "shape": list(pixels.shape), "fraction_bits": pixels.fraction_bits, "low": pixels.low, "high": pixels.high,
            "table": None if pixels.table is None else numbers.add(pixels.table),
        },
        "nodes": [_node(node, numbers) for node in program.nodes],
        "heads": [_head(head, numbers) for head in program.heads],
        "outputs": program.readout and [_output(output, numbers) for output in program.readout.outputs],
        "result": 0 if program.readout is None else _tree(program.readout.tree),
        "notes": list(program.notes),
    }  # fmt: skip
    return described, bytes(numbers.data)


class _Numbers:
    """The binary file: little-endian, each tensor at a multiple of eight bytes."""

    def __init__(self) -> None:
        self.data = bytearray()

    def add(self, tensor: Tensor) -> dict[str, Any]:
        """Append a tensor; returns what points to it."""
        array = thawed(tensor).cpu().contiguous().numpy()
        self.data += bytes(-len(self.data) % _ALIGNMENT)
        offset = len(self.data)
        self.data += array.astype(array.dtype.newbyteorder("<")).tobytes()
        return {"type": str(array.dtype), "shape": list(array.shape), "offset": offset}

    def optional(self, tensor: Tensor | None) -> dict[str, Any] | None:
        """The same, or None for none."""
        return None if tensor is None else self.add(tensor)


def _node(node: Node, numbers: _Numbers) -> dict[str, Any]:
    known: dict[str, Any] = {"name": node.name, "shape": list(node.shape)}
    if isinstance(node, Unit):
        return {
            "op": "unit", **known, "fraction_bits": node.fraction_bits, "levels": node.levels, "height": node.height,
            "retract": node.retract, "wide": node.wide, "bias": numbers.add(node.bias),
            "branches": [_branch(branch, numbers) for branch in node.branches],
        }  # fmt: skip
    known["source"] = node.source
    if isinstance(node, SumPool):
        return {"op": "sum", **known, "kernel": [*node.kernel], "stride": [*node.stride], "padding": [*node.padding]}
    if isinstance(node, Flatten):
        return {"op": "flatten", **known}
    assert isinstance(node, (Resample, MaxPool))
    op = "map" if isinstance(node, Resample) else "min" if node.lowest else "max"
    return {"op": op, **known, "rows": _axis(node.map.rows, numbers), "columns": _axis(node.map.columns, numbers)}


def _head(head: Head, numbers: _Numbers) -> dict[str, Any]:
    branches = [_branch(branch, numbers) for branch in head.branches]
    return {"shape": list(head.shape), "bias": numbers.add(head.bias), "branches": branches}


def _branch(branch: Branch, numbers: _Numbers) -> dict[str, Any]:
    known: dict[str, Any] = {"source": branch.source, "gain": numbers.add(branch.multiplier), "shift": branch.shift}
    if branch.weight is None:
        return {"op": "identity", **known}
    known |= {"weight": numbers.add(branch.weight), "values": _values(branch.weight)}
    if branch.weight.dim() == 2:
        return {"op": "product", **known}
    after = branch.after and {"rows": _axis(branch.after.rows, numbers), "columns": _axis(branch.after.columns, numbers)}
    return {
        "op": "convolution", **known, "stride": [*branch.stride], "padding": [*branch.padding], "dilation": [*branch.dilation],
        "groups": branch.groups, "after": after,
    }  # fmt: skip


def _values(weight: Tensor) -> list[int] | None:
    """The values that a weight takes, if these are few: what a chip needs to know to store codes instead."""
    found = torch.unique(thawed(weight)).tolist()
    return found if len(found) <= _MOST_LISTED else None


def _axis(axis: AxisMap, numbers: _Numbers) -> dict[str, Any]:
    return {"size": axis.size, "index": numbers.add(axis.index), "weight": numbers.add(axis.weight)}


def _output(output: Output, numbers: _Numbers) -> dict[str, Any]:
    parts = [
        {"head": part.head, "index": numbers.add(part.index), "gain": numbers.optional(part.gain)} for part in output.parts
    ]
    return {"shape": list(output.shape), "parts": parts, "shift": numbers.optional(output.shift)}


def _tree(value: Any) -> Any:
    """The index of an output, None, or a group of these."""
    if not isinstance(value, Group):
        return value
    items = [_tree(item) for item in value.items]
    return {"kind": value.kind, "items": items, **({"keys": list(value.keys)} if value.kind == "dict" else {})}


# --------------------------------------------------------------------------------------------------------------- the files


def _files(path: Path) -> tuple[Path, ...]:
    return path, path.with_suffix(".bin")


def _write(path: Path, network: IntegerNetwork, options: ExportOptions) -> None:
    try:
        check_numbers(network.program)
    except ValueError as error:
        raise LoweringError(f"not a valid program: {error}") from None
    described, data = described_network(network.program)
    _, binary = _files(path)
    origin: Mapping[str, Any] = options.origin or network.program.origin
    header = {
        "format": _FORMAT, "version": _VERSION, "writer": f"nbsnn {metadata.version('nbsnn')}",
        "data": {"file": binary.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "origin": {key: origin[key] for key in _ORIGIN if origin.get(key) is not None},
    }  # fmt: skip
    write_atomically(binary, lambda part: part.write_bytes(data))
    write_text(path, json.dumps(header | described, indent=1, ensure_ascii=True) + "\n")


def _limits(network: IntegerNetwork, options: ExportOptions) -> list[str]:
    return ["nothing is lost: all numbers of the integer network are in the files"]


EXPORTER = register(Exporter("json", "a network in JSON", ("integer",), _write, ".json", _files, limits=_limits))
