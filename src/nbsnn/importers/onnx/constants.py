"""Operators of ONNX on constants, such as shapes: small ones are computed."""

from collections.abc import Callable
from typing import Any

import numpy as np

from nbsnn.errors import shown
from nbsnn.importers.onnx.operation import Operand, Operation
from nbsnn.importers.onnx.values import Constant, Current, Levels, Whole

_MOST_CONSTANT = 2**16  # values of a constant that is computed from others, such as a shape


def compute(node: Operation) -> Constant:
    """A small constant of constants."""
    values = [node.constant(index) for index in range(len(node.inputs))]
    if any(value is None or value.size > _MOST_CONSTANT for value in values):
        node.refuse("computes a large constant", "export with constants folded")
    known: list[Any] = values
    functions: dict[str, Callable[[], Any]] = {
        "Add": lambda: known[0] + known[1], "Sub": lambda: known[0] - known[1], "Mul": lambda: known[0] * known[1],
        "Div": lambda: known[0] / known[1] if known[0].dtype.kind == "f" else known[0] // known[1], "Neg": lambda: -known[0],
        "Floor": lambda: np.floor(known[0]),
        "Concat": lambda: np.concatenate(known, int(node.get("axis", 0))),
        "Reshape": lambda: known[0].reshape([int(n) for n in known[1]]), "Flatten": lambda: known[0].reshape(len(known[0]), -1),
        "Squeeze": lambda: known[0].squeeze(), "Cast": lambda: known[0],
        "Slice": lambda: known[0][_slices(node, known[0].ndim)],
        "Transpose": lambda: known[0].transpose(node.whole("perm", []) or None),
        "Unsqueeze": lambda: np.expand_dims(known[0], node.numbers("axes", 1) or ()),
        "Gather": lambda: np.take(known[0], known[1].astype(np.int64), int(node.get("axis", 0))),
        "ConstantOfShape": lambda: _filled(node, known[0]),
    }  # fmt: skip
    try:
        result = np.asarray(functions[node.kind]())
    except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        node.refuse(f"does not fit its inputs ({shown(str(error))})", "export it again")
    if result.size > _MOST_CONSTANT:
        node.refuse("computes a large constant", "export with constants folded")
    return result


def slices_of(node: Operation, rank: int) -> dict[int, slice]:
    """The ranges of a Slice by axis; as ONNX has them, they end before the first place if the step is negative."""
    starts, stops = node.numbers("starts", 1), node.numbers("ends", 2)
    if starts is None or stops is None:
        node.refuse("has no range", "export it again")
    axes, steps = node.numbers("axes", 3) or range(len(starts)), node.numbers("steps", 4) or (1,) * len(starts)
    return {axis % rank: slice(start, stop, step) for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True)}


def _slices(node: Operation, rank: int) -> tuple[slice, ...]:
    ranges = slices_of(node, rank)
    return tuple(ranges.get(axis, slice(None)) for axis in range(rank))


def _filled(node: Operation, shape: Constant) -> Constant:
    sides = [int(n) for n in shape.reshape(-1)]
    if min(sides, default=1) < 0 or np.prod(sides, dtype=np.float64) > _MOST_CONSTANT:
        node.refuse(f"makes the shape {shown(sides)}", "export with constants folded")
    return np.full(sides, np.asarray(node.get("value", np.zeros(1, np.float32))).reshape(()))


def read_constant(node: Operation) -> Constant:
    found = [
        node.attributes[key]
        for key in ("value", "value_float", "value_floats", "value_int", "value_ints")
        if key in node.attributes
    ]
    if len(found) != 1:
        node.refuse("is no number", "export it again")
    return np.asarray(found[0])


def pass_on(node: Operation) -> Operand:
    """Identity, Dropout and Cast."""
    if isinstance(node.inputs[0], (Current, Levels, Whole)):
        return node.inputs[0]
    value = node.constant(0)
    assert value is not None
    return value


def read_shape(node: Operation) -> Constant:
    """The batch is −1."""
    whole = np.array([-1, *node.reading.shape(node.raw())])
    return whole[slice(int(node.get("start", 0)), node.get("end", None))]
