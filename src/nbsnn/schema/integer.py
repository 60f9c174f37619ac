"""The header of an integer network, which holds the program with every tensor by name."""

from collections.abc import Mapping
from typing import Any

from nbsnn.schema.common import FORMAT, HASH, METRICS, MODEL, MOST_LAYERS, MOST_SIDE, MOST_TIMESTEPS, VERSIONS, recipe
from nbsnn.schema.kinds import Check, choice, flag, later, list_of, nullable, number, refuse, table, text, whole

MOST_NODES = 1024
MOST_BRANCHES = 4096  # of a unit: a concatenation is a branch per source
MOST_PADDING = 1024
MOST_HEADS = 256
_MOST_DEPTH = 8  # of groups of outputs in groups


def _object(name: str, fields: Mapping[str, Check | later]) -> Check:
    return table({"class": choice(name), **fields})


def _node(value: Any, path: str) -> None:
    kinds = {"Unit": _UNIT, "SumPool": _SUM_POOL, "Resample": _RESAMPLE, "MaxPool": _MAX_POOL, "Flatten": _FLATTEN}
    name = value.get("class") if isinstance(value, Mapping) else None
    if not isinstance(name, str) or name not in kinds:
        refuse(name, f"{path}.class", " or ".join(kinds))
    kinds[name](value, path)


def _tree(value: Any, path: str, depth: int = 0) -> None:
    """The index of an output, None, or a group of these."""
    if not isinstance(value, Mapping):
        return nullable(whole(0, MOST_HEADS))(value, path)
    if depth >= _MOST_DEPTH:
        refuse(depth, path, f"groups in at most {_MOST_DEPTH} others")
    _object("Group", {
        "kind": choice("tuple", "list", "dict"), "items": list_of(lambda item, at: _tree(item, at, depth + 1), 0, MOST_HEADS),
        "keys": list_of(_key, 0, MOST_HEADS),
    })(value, path)  # fmt: skip


def _key(value: Any, path: str) -> None:
    """Of a dict: text or an integer."""
    (text() if isinstance(value, str) else whole(-(2**31), 2**31))(value, path)


_NAME = text()
_TENSOR = table({"tensor": text(1024)})
_SHAPE = list_of(whole(1, 2**31 - 1), 1, 3)
_AXIS = _object("AxisMap", {"index": _TENSOR, "weight": _TENSOR, "size": whole(1, MOST_SIDE)})
_MAP = _object("PlaneMap", {"rows": _AXIS, "columns": _AXIS})
_BRANCH = _object("Branch", {
    "source": _NAME, "multiplier": _TENSOR, "weight": nullable(_TENSOR),
    "stride": list_of(whole(1, MOST_SIDE), 2, 2), "padding": list_of(whole(0, MOST_PADDING), 2, 2),
    "dilation": list_of(whole(1, MOST_SIDE), 2, 2), "groups": whole(1, 2**20), "shift": whole(0, 62),
    "after": later(nullable(_MAP)),  # without: none
    "layer": later(_NAME),  # without: unknown
})  # fmt: skip
_BRANCHES = list_of(_BRANCH, 1, MOST_BRANCHES)
_UNIT = _object("Unit", {
    "name": _NAME, "shape": _SHAPE, "branches": _BRANCHES, "bias": _TENSOR, "fraction_bits": whole(1, 40),
    "levels": whole(1, MOST_TIMESTEPS), "height": number(1e-30, 1e30), "retract": whole(-(2**62), -1),
    "bound": whole(1, 2**52), "wide": flag,
})  # fmt: skip
_SUM_POOL = _object("SumPool", {
    "name": _NAME, "source": _NAME, "kernel": list_of(whole(1, MOST_SIDE), 2, 2), "stride": list_of(whole(1, MOST_SIDE), 2, 2),
    "padding": list_of(whole(0, MOST_PADDING), 2, 2), "shape": _SHAPE,
})  # fmt: skip
_RESAMPLE = _object("Resample", {"name": _NAME, "source": _NAME, "map": _MAP, "shape": _SHAPE})
_MAX_POOL = _object("MaxPool", {"name": _NAME, "source": _NAME, "map": _MAP, "lowest": flag, "shape": _SHAPE})
_FLATTEN = _object("Flatten", {"name": _NAME, "source": _NAME, "shape": _SHAPE})
_PIXELS = _object("Pixels", {
    "shape": list_of(whole(1, MOST_SIDE), 1, 3), "fraction_bits": whole(0, 30), "low": whole(1 - 2**30, 0),
    "high": whole(0, 2**30 - 1), "table": nullable(_TENSOR),
})  # fmt: skip
_HEAD = _object("Head", {"shape": _SHAPE, "branches": _BRANCHES, "bias": _TENSOR})
_PART = _object("Part", {"head": whole(0, MOST_HEADS), "index": _TENSOR, "gain": nullable(_TENSOR)})
_OUTPUT = _object("Output", {
    "shape": list_of(whole(1, 2**31 - 1), 0, 8), "parts": list_of(_PART, 0, MOST_BRANCHES), "shift": nullable(_TENSOR),
})  # fmt: skip
_READOUT = _object("Readout", {"outputs": list_of(_OUTPUT, 1, MOST_HEADS), "tree": _tree})
PROGRAM = _object("Program", {
    "timesteps": whole(1, MOST_TIMESTEPS),
    "pixels": _PIXELS,
    "nodes": list_of(_node, 1, MOST_NODES),
    "head": _HEAD,
    "notes": list_of(text(1000), 0, MOST_LAYERS),
    "origin": METRICS,
    "more": later(list_of(_HEAD, 0, MOST_HEADS)),  # without: one head
    "readout": later(nullable(_READOUT)),  # without: the result is that of the head
})  # fmt: skip
INTEGER_NETWORK = table({
    "format": FORMAT,
    "form": choice("integer"),
    "program": PROGRAM,
    "model": nullable(MODEL),
    "recipe": nullable(recipe),
    "versions": VERSIONS,
    "content_hash": HASH,
})  # fmt: skip
