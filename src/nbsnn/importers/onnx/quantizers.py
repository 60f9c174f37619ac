"""Operators of ONNX that round and bend: quantizers of weights and signals, and the activations before them."""

from dataclasses import replace

import numpy as np

from nbsnn.importers.onnx.constants import compute
from nbsnn.importers.onnx.operation import Operand, Operation
from nbsnn.importers.onnx.values import SAME, Bend, Constant, Current, Levels, Whole


def read_quantize(node: Operation) -> Operand:
    scale, zero = node.constant(1), node.constant(2)
    assert scale is not None
    if zero is None and node.get("output_dtype", 0):
        node.refuse("has a type of its own and no zero point", "export a zero point")
    kind = np.dtype(np.uint8) if zero is None else zero.dtype
    bounds = {"int64": (-8, 7), "uint64": (0, 15)}.get(str(kind))  # 4 bits, read as 64
    low, high = bounds or (np.iinfo(kind).min, np.iinfo(kind).max)
    value = node.inputs[0]
    if isinstance(value, Current):
        step, offset = node.scalar(1, "scale"), int(node.scalar(2, "zero point") or 0)
        if not step or not step > 0:
            node.refuse(f"has the scale {step}", "export it again")
        return Levels(value, step, offset, low, high)
    numbers = node.constant(0)
    assert numbers is not None
    shape = _along(numbers, scale, node)
    offsets = np.zeros(()) if zero is None else zero.astype(np.float64).reshape(shape if zero.size > 1 else ())
    return np.clip(np.rint(numbers / scale.reshape(shape)) + offsets, low, high).astype(np.int64)


def _along(numbers: Constant, scale: Constant, node: Operation) -> tuple[int, ...]:
    """The shape in which a scale is broadcast to numbers."""
    axis = node.get("axis", 1)
    if scale.size == 1:
        return ()
    if not -numbers.ndim <= axis < numbers.ndim or numbers.shape[axis] != scale.size or node.get("block_size", 0):
        node.refuse(f"has {scale.size} scales for the shape {list(numbers.shape)}", "use a scale per tensor or per channel")
    return tuple(scale.size if i == axis % numbers.ndim else 1 for i in range(numbers.ndim))


def read_dequantize(node: Operation) -> Operand:
    value, reading = node.inputs[0], node.reading
    if not isinstance(value, Levels):
        integers, scale, zero = node.constant(0), node.constant(1), node.constant(2)
        if integers is None or scale is None or integers.dtype.kind not in "iu" or not np.isfinite(scale).all():
            node.refuse("has no integers or no scale", "export it again")
        shape = _along(integers, scale, node)
        zeros = np.zeros((), np.int64) if zero is None else zero.astype(np.int64)
        integers = integers.astype(np.int64) - zeros.reshape(shape if zeros.size > 1 else ())
        return Whole(integers, scale.reshape(-1), node.get("axis", 1) % max(integers.ndim, 1), node.label)
    step, offset = node.scalar(1, "scale"), node.scalar(2, "zero point") or 0
    if step is None or abs(step - value.scale) > SAME * value.scale or int(offset) != value.zero:
        node.refuse("has another scale or zero point than its QuantizeLinear", "export it again")
    signal = value.signal
    if signal.bend is None and not signal.floored and reading.is_image(signal):
        reading.notes.append(f"{node.label}: the image is not quantized, since it is a current here")
        return signal
    if reading.is_on_grid(value):
        return signal
    if node.is_output and signal.bend is None:
        reading.notes.append(f"{node.label}: the output is not quantized")
        return signal
    return reading.activation(node.label, value)


# ------------------------------------------------------------------------------------------------------------ activations


def read_clip(node: Operation) -> Operand:
    given = [node.scalar(index, f"{what}er bound") for index, what in ((1, "low"), (2, "upp"))]
    named = [node.get(name, None) for name in ("min", "max")]  # attributes in version 10
    low, high = (
        default if bound is None and attribute is None else float(attribute if bound is None else bound)
        for bound, attribute, default in zip(given, named, (-np.inf, np.inf), strict=True)
    )
    value = node.inputs[0]
    if isinstance(value, Levels):
        return Levels(value.signal, value.scale, value.zero, max(value.low, int(max(low, -(2**31)))),
                      min(value.high, int(min(high, 2**31))))  # fmt: skip
    if not isinstance(value, Current):
        numbers = node.constant(0)
        assert numbers is not None
        return np.clip(numbers, low, high).astype(numbers.dtype)
    return _bent(node, value, Bend(low=low, high=high))


def read_relu(node: Operation) -> Current:
    return _bent(node, node.raw(), Bend(low=0.0))


def read_bound(node: Operation) -> Current:
    """Min and Max of a signal and a number."""
    if len(node.inputs) != 2:
        node.refuse(f"compares {len(node.inputs)} values", "only one signal and one number are compared")
    at = 0 if isinstance(node.inputs[0], Current) else 1
    number = node.scalar(1 - at, "bound")
    assert number is not None
    return _bent(node, node.raw(at), Bend(high=number) if node.kind == "Min" else Bend(low=number))


def read_leaky(node: Operation) -> Current:
    return _sloped(node, np.array(float(node.get("alpha", 0.01))))


def read_prelu(node: Operation) -> Current:
    slope = node.constant(1)
    assert slope is not None
    shape = node.reading.shape(node.raw())
    if slope.size > 1 and (slope.size != shape[0] or slope.shape[-len(shape) :] != (shape[0], *(1 for _ in shape[1:]))):
        node.refuse(f"has slopes of shape {list(slope.shape)}", "use one slope, or one per channel")
    return _sloped(node, slope.astype(np.float64).reshape(-1 if slope.size > 1 else ()))


def _sloped(node: Operation, slope: Constant) -> Current:
    value = node.raw()
    if value.bend is not None or value.floored:
        node.refuse("reads another activation that is not quantized", "put QuantizeLinear and DequantizeLinear between them")
    return replace(value, bend=Bend(slope=slope))


def _bent(node: Operation, value: Current, bend: Bend) -> Current:
    """The value with a clip before its quantizer, after another one or none."""
    if not bend.low <= 0 < bend.high:
        node.refuse(f"clips to [{bend.low:g}, {bend.high:g}]", "only clips around or from 0 on are activations")
    if value.floored:
        node.refuse("reads the output of a Floor", "put QuantizeLinear behind it")
    before = value.bend or Bend()
    both = Bend(max(before.low, bend.low), min(before.high, bend.high), before.slope)
    return replace(value, bend=None if both.is_identity else both)


def read_floor(node: Operation) -> Operand:
    """Part of a rounding half up: Floor(x · gain + ½)."""
    if not isinstance(node.inputs[0], Current):
        return compute(node)
    value = node.raw()
    if value.bend is not None or value.floored or value.shift != 0.5 or not value.gain > 0:
        node.refuse("is no rounding, Floor(x · gain + 1/2)", "quantize with QuantizeLinear")
    return Current(value.step, floored=value.gain)
