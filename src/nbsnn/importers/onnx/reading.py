"""The operators of ONNX that are read, one function each, from a node to a step, a constant or a quantizer."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from nbsnn.errors import CheckpointError, shown
from nbsnn.importers.onnx.signals import SAME, Constant, Current, Levels, Reading, Whole
from nbsnn.importers.onnx.wire import numbers_of
from nbsnn.onnx_package import onnx_package
from nbsnn.quant.formats.uniform import Uniform

Operand = Constant | Whole | Levels | Current
_MOST_CONSTANT = 2**16  # values of a constant that is computed from others, such as a shape


class Operation:
    """A node with its attributes and the values of its inputs (None for those left out)."""

    def __init__(self, node: Any, values: Mapping[str, Operand], reading: Reading, path: Path, outputs: set[str]) -> None:
        self.kind, self.reading, self.path = node.op_type, reading, path
        self.label = shown(node.name or node.output[0])  # bytes, if it is no UTF-8
        self.inputs = [values[name] if name else None for name in node.input]
        self.is_output = bool(outputs & set(node.output))
        onnx = onnx_package()
        self.attributes: dict[str, Any] = {}
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                self.attributes[attribute.name] = numbers_of(attribute.t, path)
            elif attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                self.refuse("has a graph of its own", "export a network without conditions and loops")
            else:
                self.attributes[attribute.name] = onnx.helper.get_attribute_value(attribute)

    def refuse(self, what: str, remedy: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: {self.kind} {shown(self.label)} {what}; {remedy}")

    def get(self, name: str, default: Any) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def whole(self, name: str, default: list[int]) -> tuple[int, ...]:
        """An attribute that is a list of integers."""
        given = self.get(name, default)
        if not isinstance(given, (list, tuple)) or len(given) > 8:
            self.refuse(f"has {name}={shown(given)}", "export it again")
        return tuple(int(value) for value in given)

    def signal(self, index: int = 0) -> Current:
        """An input that depends on the image, with its gain applied."""
        return self.reading.applied(self.raw(index), self.label)

    def raw(self, index: int = 0) -> Current:
        """An input that depends on the image."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if not isinstance(value, Current):
            self.refuse(f"does not read the image at input {index}", "only weights and shapes may be constants")
        return value

    def constant(self, index: int) -> Constant | None:
        """An input that is a constant; None if it is left out."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(value, (Current, Levels)):
            self.refuse(f"has an input {index} that depends on the image", "only sums may combine two signals")
        return value.numbers if isinstance(value, Whole) else value

    def scalar(self, index: int, what: str) -> float | None:
        """A constant with one value."""
        value = self.constant(index)
        if value is not None and value.size != 1:
            self.refuse(f"has {value.size} values as {what}", "quantize activations per tensor")
        return None if value is None else float(value.reshape(()))


# ------------------------------------------------------------------------------------------------------------- quantizers


def _quantize(node: Operation) -> Operand:
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


def _dequantize(node: Operation) -> Operand:
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
    if signal.limit is None and not signal.floored and reading.is_image(signal):
        reading.notes.append(f"{node.label}: the image is not quantized, since it is a current here")
        return signal
    if reading.is_on_grid(value):
        return signal
    if node.is_output:
        reading.notes.append(f"{node.label}: the output is not quantized")
        return signal
    return reading.activation(node.label, value)


def _clip(node: Operation) -> Operand:
    bounds = node.scalar(1, "lower bound"), node.scalar(2, "upper bound")
    low, high = (-np.inf if bounds[0] is None else bounds[0]), (np.inf if bounds[1] is None else bounds[1])
    value = node.inputs[0]
    if isinstance(value, Levels):
        return Levels(value.signal, value.scale, value.zero, max(value.low, int(max(low, -(2**31)))),
                      min(value.high, int(min(high, 2**31))))  # fmt: skip
    if not isinstance(value, Current):
        numbers = node.constant(0)
        assert numbers is not None
        return np.clip(numbers, low, high).astype(numbers.dtype)
    return _rectified(node, value, low, high)


def _rectified(node: Operation, value: Current, low: float, high: float) -> Current:
    if low != 0 or not high > 0:
        node.refuse(f"clips to [{low:g}, {high:g}]", "only clips from 0 on are activations")
    if value.floored:
        node.refuse("reads the output of a Floor", "put QuantizeLinear behind it")
    return replace(value, limit=high if value.limit is None else min(value.limit, high))


def _floor(node: Operation) -> Current:
    """Part of a rounding half up: Floor(x · gain + ½)."""
    value = node.raw()
    if value.limit is not None or value.floored or value.shift != 0.5 or not value.gain > 0:
        node.refuse("is no rounding, Floor(x · gain + 1/2)", "quantize with QuantizeLinear")
    return Current(value.step, floored=value.gain)


# ---------------------------------------------------------------------------------------------------------------- weights


def _weighted(node: Operation, kind: str, weight: Operand | None, bias: Constant | None, options: Mapping[str, Any], x: Current,
              turned: bool = False) -> Current:  # fmt: skip
    """A convolution or product with a weight [O, ...], or its transpose."""
    reading = node.reading
    if not isinstance(weight, (Whole, np.ndarray)):
        node.refuse("has a weight that depends on the image", "only convolutions and products with constants are read")
    label = re.sub(
        r"(\.weight)?(_quantized)?(/dequantized|_DequantizeLinear)?$",
        "",
        weight.name if isinstance(weight, Whole) else node.label,
    )
    made = reading.add(kind, label, x, options={**options, "bias": bias is not None})
    numbers = weight.numbers if isinstance(weight, Whole) else weight.astype(np.float64)
    reading.state[made.step] = {"weight": numbers.T if turned else numbers} | ({} if bias is None else {"bias": bias})
    if not isinstance(weight, Whole):
        reading.notes.append(f"{label}: its weight is not quantized")
        return made
    rows = weight.axis == (1 if turned else 0)
    if weight.scale.size > 1 and not rows:
        node.refuse("has a scale for each input channel", "quantize weights per tensor or per output channel")
    largest = int(np.abs(weight.integers).max(initial=0))
    if largest > 127:
        node.refuse(f"has weights of up to {largest} steps", "quantize weights symmetrically to [−127, 127] (narrow range)")
    bits = next(bits for bits in Uniform.widths if largest <= 2 ** (bits - 1) - 1)
    single = weight.scale.size == 1
    reading.plan[made.step] = Uniform(bits, scale="tensor" if single else "channel")
    unit = weight.scale.astype(np.float64) * (2 ** (bits - 1) - 1)
    if not (unit > 0).all():
        node.refuse("has a scale that is not positive", "export it again")
    reading.scales[made.step] = unit.reshape(()) if single else unit.reshape(-1, *(1 for _ in numbers.shape[1:]))
    return made


def _conv(node: Operation) -> Current:
    weight = node.inputs[1]
    shape = (weight.integers if isinstance(weight, Whole) else np.asarray(node.constant(1))).shape
    axes = len(shape) - 2
    if axes not in (1, 2):
        node.refuse(f"has {axes} axes of places", "one or two are read")
    x, before = _padded(node, node.signal(), axes)
    groups = int(node.get("group", 1))
    options = {
        "in_channels": shape[1] * groups, "out_channels": shape[0], "kernel_size": shape[2:], "groups": groups,
        "padding": before, "stride": node.whole("strides", [1] * axes), "dilation": node.whole("dilations", [1] * axes),
    }  # fmt: skip
    return _weighted(node, f"conv{axes}d", weight, node.constant(2), options, x)


def _padded(node: Operation, x: Current, axes: int) -> tuple[Current, tuple[int, ...]]:
    """The signal, with a border if the padding differs between sides, and the padding that is left."""
    kind = node.get("auto_pad", b"NOTSET")
    if kind not in (b"NOTSET", b"VALID", b""):
        node.refuse(f"has auto_pad={shown(kind)}", "export explicit pads")
    pads = node.whole("pads", [0] * 2 * axes)
    before, after = pads[:axes], pads[axes:]
    if before == after:
        return x, before
    border = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
    return node.reading.add("pad", f"{node.label}_pad", x, options={"pad": border}), (0,) * axes


def _gemm(node: Operation) -> Current:
    weight, turned = node.inputs[1], not node.get("transB", 0)
    if node.get("transA", 0) or node.get("alpha", 1.0) != 1.0 or node.get("beta", 1.0) != 1.0:
        node.refuse("has alpha, beta or transA", "export a plain linear layer")
    return _linear(node, weight, node.constant(2), turned)


def _linear(node: Operation, weight: Operand | None, bias: Constant | None, turned: bool) -> Current:
    shape = (weight.integers if isinstance(weight, Whole) else np.asarray(node.constant(1))).shape
    if len(shape) != 2:
        node.refuse(f"has a weight of shape {list(shape)}", "a linear layer has two axes")
    rows, columns = shape[::-1] if turned else shape
    bias = None if bias is None else np.broadcast_to(bias.reshape(-1), rows)
    return _weighted(node, "linear", weight, bias, {"in_features": columns, "out_features": rows}, node.signal(), turned)


def _norm(node: Operation) -> Current:
    weight, bias, mean, var = (node.constant(index) for index in range(1, 5))
    x = node.signal()
    axes = len(node.reading.shape(x)) - 1
    options = {"num_features": node.reading.shape(x)[0], "eps": float(node.get("epsilon", 1e-5))}
    made = node.reading.add(f"norm{2 if axes == 2 else 1}d", node.label, x, options=options)
    tensors = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    node.reading.state[made.step] = {key: np.asarray(value) for key, value in tensors.items()}
    return made


# ------------------------------------------------------------------------------------------------------------ arithmetic


def _combined(node: Operation) -> Operand:
    """Add, Sub, Mul and Div: of two signals, or of a signal and a constant."""
    signals = [isinstance(value, Current) for value in node.inputs[:2]]
    if signals == [True, True]:
        if node.kind not in ("Add", "Sub"):
            node.refuse("multiplies or divides two signals", "only sums of signals are affine")
        return node.reading.add("add" if node.kind == "Add" else "subtract", node.label, node.signal(0), node.signal(1))
    if True not in signals:
        return _computed(node)
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
    if x.floored and gain.size == 1 and not shift.any() and abs(float(gain.reshape(())) * x.floored - 1) < SAME:
        return Current(x.step)  # rounded to the grid of the QuantizeLinear that follows
    if constant.size == 1 and x.limit is None and not x.floored:
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


def _concat(node: Operation) -> Operand:
    if not any(isinstance(value, Current) for value in node.inputs):
        return _computed(node)
    if node.get("axis", 1) != 1:
        node.refuse(f"joins along axis {node.get('axis', 1)}", "only channels are joined")
    return node.reading.add("concatenate", node.label, *(node.signal(index) for index in range(len(node.inputs))))


# ----------------------------------------------------------------------------------------------------------------- places


def _max_pool(node: Operation) -> Current:
    kernel = node.whole("kernel_shape", [])
    axes = len(kernel)
    pads = node.whole("pads", [0] * 2 * axes)
    sizes = node.reading.shape(node.raw())[1:]
    if axes not in (1, 2) or len(sizes) != axes or node.get("storage_order", 0):
        node.refuse("has another layout", "pool one or two axes of places")
    stride, dilation = node.whole("strides", [1] * axes), node.whole("dilations", [1] * axes)
    windows = list(zip(sizes, kernel, stride, dilation, pads[:axes], pads[axes:], strict=True))
    ceil = bool(node.get("ceil_mode", 0))
    wanted = [_places(n, k, s, d, before, after, ceil=ceil) for n, k, s, d, before, after in windows]
    # Padding is never chosen: more of it behind the last place is the same as windows that may end beyond it.
    for mode in (ceil, not ceil):
        if [_places(n, k, s, d, before, before, ceil=mode) for n, k, s, d, before, _ in windows] == wanted:
            options = {"kernel_size": kernel, "stride": stride, "padding": pads[:axes], "dilation": dilation, "ceil_mode": mode}
            return _pooled(node, f"max pool {axes}d", options)
    return node.refuse("has padding that differs between sides", "pad both sides alike")


def _places(size: int, kernel: int, stride: int, dilation: int, before: int, after: int, *, ceil: bool) -> int:
    """The places of windows along an axis; with `ceil` the last one may end beyond the padding, but not begin there."""
    room = size + before + after - dilation * (kernel - 1) - 1
    count = (-(-room // max(stride, 1)) if ceil else room // max(stride, 1)) + 1
    return count - 1 if ceil and (count - 1) * stride >= size + before else count


def _pooled(node: Operation, kind: str, options: Mapping[str, Any]) -> Current:
    """A max pool; one between an activation and its quantizer goes behind both, which gives the same values."""
    x = node.raw()
    if x.limit is not None and not x.floored:
        return replace(x, pools=(*x.pools, (kind, options)))
    if x.limit is None and not x.floored and x.gain > 0:  # a maximum keeps the order, scaled and shifted or not
        return replace(node.reading.add(kind, node.label, Current(x.step), options=options), gain=x.gain, shift=x.shift)
    return node.reading.add(kind, node.label, node.signal(), options=options)


def _average_pool(node: Operation) -> Current:
    kernel = node.whole("kernel_shape", [])
    axes = len(kernel)
    if axes not in (1, 2) or any(size != 1 for size in node.whole("dilations", [1] * axes)):
        node.refuse("has dilated windows or more than two axes", "use plain average pools")
    x, before = _padded(node, node.signal(), axes)
    if x.step != node.signal().step and not node.get("count_include_pad", 0):
        node.refuse("has padding that differs between sides and is not counted", "pad both sides alike")
    options = {
        "kernel_size": kernel, "stride": node.whole("strides", [1] * axes), "padding": before,
        "ceil_mode": bool(node.get("ceil_mode", 0)), "count_include_pad": bool(node.get("count_include_pad", 0)),
    }  # fmt: skip
    return node.reading.add(f"average pool {axes}d", node.label, x, options=options)


def _mean(node: Operation) -> Current:
    x = node.signal()
    rank = len(node.reading.shape(x)) + 1
    given = node.constant(1) if len(node.inputs) > 1 else None
    axes = [int(a) % rank for a in (node.whole("axes", []) if given is None else given.reshape(-1))]
    if node.kind == "ReduceMean" and sorted(axes) != list(range(2, rank)):
        node.refuse(f"averages over axes {axes}", "only means over all places are read")
    keep = node.kind != "ReduceMean" or bool(node.get("keepdims", 1))
    return node.reading.add("mean", node.label, x, options={"keep": keep})


def _reshape(node: Operation) -> Operand:
    """Reshape, Flatten, Squeeze and Unsqueeze of a signal."""
    if not isinstance(node.inputs[0], Current):
        return _computed(node)
    x = node.signal()
    shape = node.reading.shape(x)
    if node.kind == "Flatten":
        if node.get("axis", 1) != 1:
            node.refuse(f"flattens from axis {node.get('axis', 1)}", "keep the batch")
        return node.reading.add("flatten", node.label, x) if len(shape) > 1 else x
    given = node.constant(1) if len(node.inputs) > 1 else None
    numbers = [int(n) for n in (node.whole("axes", []) if given is None else given.reshape(-1))]
    if len(numbers) > 8:
        node.refuse(f"makes {len(numbers)} axes", "export it again")
    if node.kind == "Reshape":
        target = [shape[i - 1] if n == 0 and 0 < i <= len(shape) else n for i, n in enumerate(numbers)]
        if not target or (target[0] > 1 or (target[0] == -1 and -1 in target[1:])):
            node.refuse(f"makes the shape {numbers}", "keep the batch as the first axis")
        return node.reading.add("reshape", node.label, x, options={"shape": _known(target[1:], shape)})
    rank = len(shape) + 1 + (len(numbers) if node.kind == "Unsqueeze" else 0)
    axes = sorted(n % rank for n in numbers) or [i + 1 for i, n in enumerate(shape) if n == 1]
    sides = [1, *shape]
    for axis in axes if node.kind == "Unsqueeze" else reversed(axes):
        if axis == 0 or (node.kind == "Squeeze" and sides[axis] != 1):
            node.refuse(f"changes axis {axis}", "keep the batch")
        if node.kind == "Unsqueeze":
            sides.insert(axis, 1)
        else:
            del sides[axis]
    return node.reading.add("reshape", node.label, x, options={"shape": sides[1:]})


def _known(target: list[int], shape: tuple[int, ...]) -> list[int]:
    """A shape with its −1 computed; the batch has none."""
    rest = int(np.prod([n for n in target if n != -1], dtype=np.int64))
    whole = int(np.prod(shape, dtype=np.int64))
    return [whole // max(rest, 1) if n == -1 else n for n in target]


def _pad(node: Operation) -> Current:
    x = node.signal()
    pads, value = node.constant(1), node.scalar(2, "value") or 0.0
    if (
        node.get("mode", b"constant") != b"constant"
        or value
        or pads is None
        or (len(node.inputs) > 3 and node.inputs[3] is not None)
    ):
        node.refuse("does not pad with zeros", "export zero padding")
    rank = len(pads) // 2
    sides = [(int(pads[i]), int(pads[rank + i])) for i in range(rank)]
    if any(any(side) for side in sides[:2]):
        node.refuse("pads the batch or the channels", "pad places only")
    return node.reading.add("pad", node.label, x, options={"pad": [n for side in reversed(sides[2:]) for n in side]})


# -------------------------------------------------------------------------------------------------------------- constants


def _computed(node: Operation) -> Constant:
    """A small constant of constants, such as a shape."""
    values = [node.constant(index) for index in range(len(node.inputs))]
    if any(value is None or value.size > _MOST_CONSTANT for value in values):
        node.refuse("computes a large constant", "export with constants folded")
    known: list[Any] = values
    functions: dict[str, Callable[[], Any]] = {
        "Add": lambda: known[0] + known[1], "Sub": lambda: known[0] - known[1], "Mul": lambda: known[0] * known[1],
        "Div": lambda: known[0] / known[1] if known[0].dtype.kind == "f" else known[0] // known[1],
        "Concat": lambda: np.concatenate(known, int(node.get("axis", 0))),
        "Reshape": lambda: known[0].reshape([int(n) for n in known[1]]), "Flatten": lambda: known[0].reshape(len(known[0]), -1),
        "Squeeze": lambda: known[0].squeeze(), "Cast": lambda: known[0],
        "Unsqueeze": lambda: np.expand_dims(
            known[0], tuple(int(n) for n in (known[1] if len(known) > 1 else node.whole("axes", [])))
        ),
        "Gather": lambda: np.take(known[0], known[1].astype(np.int64), int(node.get("axis", 0))),
    }  # fmt: skip
    try:
        result = np.asarray(functions[node.kind]())
    except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        node.refuse(f"does not fit its inputs ({shown(str(error))})", "export it again")
    if result.size > _MOST_CONSTANT:
        node.refuse("computes a large constant", "export with constants folded")
    return result


def _constant(node: Operation) -> Constant:
    found = [
        node.attributes[key]
        for key in ("value", "value_float", "value_floats", "value_int", "value_ints")
        if key in node.attributes
    ]
    if len(found) != 1:
        node.refuse("is no number", "export it again")
    return np.asarray(found[0])


def _same(node: Operation) -> Operand:
    if isinstance(node.inputs[0], (Current, Levels, Whole)):
        return node.inputs[0]
    value = node.constant(0)
    assert value is not None
    return value


OPERATORS: dict[str, Callable[[Operation], Operand]] = {
    "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize, "Clip": _clip, "Floor": _floor,
    "Relu": lambda node: _rectified(node, node.raw(), 0, np.inf), "Conv": _conv, "Gemm": _gemm,
    "MatMul": lambda node: _linear(node, node.inputs[1], None, True), "BatchNormalization": _norm,
    "Add": _combined, "Sub": _combined, "Mul": _combined, "Div": _combined, "Concat": _concat, "MaxPool": _max_pool,
    "GlobalMaxPool": lambda node: _pooled(node, "global max pool", {"output_size": (1, 1)}), "AveragePool": _average_pool,
    "GlobalAveragePool": _mean, "ReduceMean": _mean, "Flatten": _reshape, "Reshape": _reshape, "Squeeze": _reshape,
    "Unsqueeze": _reshape, "Pad": _pad, "Constant": _constant, "Identity": _same, "Dropout": _same, "Cast": _same,
    "Gather": _computed, "Shape": lambda node: np.array([-1, *node.reading.shape(node.raw())]),
}  # fmt: skip
