"""Operators of ONNX that add signals, or scale and shift them by constants."""

from dataclasses import replace

import numpy as np

from nbsnn.importers.onnx.constants import compute
from nbsnn.importers.onnx.operation import Operand, Operation
from nbsnn.importers.onnx.values import SAME, Constant, Current


def read_arithmetic(node: Operation) -> Operand:
    """Add, Sub, Mul and Div: of two signals, or of a signal and a constant."""
    signals = [isinstance(value, Current) for value in node.inputs[:2]]
    if signals == [True, True]:
        if node.kind not in ("Add", "Sub"):
            node.refuse("multiplies or divides two signals", "only sums of signals are affine")
        _same_shapes(node)
        return node.reading.add("add" if node.kind == "Add" else "subtract", node.label, node.signal(0), node.signal(1))
    if True not in signals:
        return compute(node)
    x, constant = node.raw(signals.index(True)), node.constant(signals.index(False))
    assert constant is not None
    constant = constant.astype(np.float64)
    if node.kind == "Div" and (signals[1] or not constant.all()):
        node.refuse("divides by a signal or by 0", "export it again")
    if node.kind in ("Mul", "Div"):
        gain, shift = (constant if node.kind == "Mul" else 1 / constant), np.zeros(())
    else:
        gain = np.array(-1.0 if node.kind == "Sub" and signals[1] else 1.0)
        shift = -constant if node.kind == "Sub" and signals[0] else constant
    return _changed(node, x, gain, shift)


def _changed(node: Operation, x: Current, gain: Constant, shift: Constant) -> Current:
    """gain · x + shift."""
    if x.floored and gain.size == 1 and not shift.any() and abs(float(gain.reshape(())) * x.floored - 1) < SAME:
        return Current(x.step)  # rounded to the grid of the QuantizeLinear that follows
    if gain.size == shift.size == 1 and x.bend is None and not x.floored:
        factor = float(gain.reshape(()))
        return Current(x.step, x.gain * factor, x.shift * factor + float(shift.reshape(())))
    x = node.reading.applied(x, node.label)
    shape = node.reading.shape(x)
    vectors = [_channels(node, value, shape) for value in (gain, shift)]
    return node.reading.per_channel(x, node.label, *vectors)


def _channels(node: Operation, value: Constant, shape: tuple[int, ...]) -> Constant:
    """A constant per channel, [C] or a scalar, as it is broadcast to [1, *shape]."""
    if value.size == 1:
        return value.reshape(())
    full = (1,) * (len(shape) + 1 - value.ndim) + value.shape
    if len(full) != len(shape) + 1 or full != (1, shape[0], *(1 for _ in shape[1:])):
        node.refuse(f"has a constant of shape {list(value.shape)}", "use one value per channel")
    return value.reshape(-1)


def _same_shapes(node: Operation) -> None:
    shapes = {node.reading.shape(node.raw(index)) for index in range(len(node.inputs))}
    if len({len(shape) for shape in shapes}) > 1:
        node.refuse(f"adds signals of the shapes {sorted(map(list, shapes))}", "add signals with as many axes")


def read_sum(node: Operation) -> Current:
    """Sum and Mean of any number of signals."""
    _same_shapes(node)
    total = node.signal(0)
    for index in range(1, len(node.inputs)):
        total = node.reading.add("add", node.label, total, node.signal(index))
    return replace(total, gain=1 / len(node.inputs)) if node.kind == "Mean" else total


def read_negative(node: Operation) -> Operand:
    if not isinstance(node.inputs[0], Current):
        return compute(node)
    return _changed(node, node.raw(), np.array(-1.0), np.zeros(()))


def read_concatenation(node: Operation) -> Operand:
    if not any(isinstance(value, Current) for value in node.inputs):
        return compute(node)
    parts = [node.signal(index) for index in range(len(node.inputs))]
    axis = node.place_axis(int(node.get("axis", 1)), len(node.reading.shape(parts[0])) + 1)
    return node.reading.add("concatenate", node.label, *parts, options={} if axis == 1 else {"axis": axis})
