"""Operators of ONNX with weights: convolutions, transposed ones, products, and batch norms."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nbsnn.importers.onnx.operation import Operand, Operation, weight_shape
from nbsnn.importers.onnx.values import Constant, Current, Whole
from nbsnn.importers.onnx.windows import padded, transposed_window
from nbsnn.quant.formats.uniform import Uniform

_WEIGHTS = "only convolutions and products of a signal with a constant, in this order, are read"


def read_convolution(node: Operation) -> Current:
    shape = weight_shape(node, node.inputs[1], 1)
    axes = _axes(node, shape)
    groups = int(node.get("group", 1))
    stride, dilation = node.whole("strides", [1] * axes), node.whole("dilations", [1] * axes)
    x, padding = padded(node, shape[2:], stride, dilation)
    options = {
        "in_channels": shape[1] * groups, "out_channels": shape[0], "kernel_size": shape[2:], "groups": groups,
        "padding": padding, "stride": stride, "dilation": dilation,
    }  # fmt: skip
    return _weighted(node, f"conv{axes}d", node.inputs[1], node.constant(2), options, x)


def read_transposed(node: Operation) -> Current:
    shape = weight_shape(node, node.inputs[1], 1)
    axes = _axes(node, shape)
    groups = int(node.get("group", 1))
    x = node.signal()
    options, crop = transposed_window(node, node.reading.shape(x)[1:], shape[2:])
    options |= {"in_channels": shape[0], "out_channels": shape[1] * groups, "kernel_size": shape[2:], "groups": groups}
    made = _weighted(node, f"transposed conv{axes}d", node.inputs[1], node.constant(2), options, x, outputs=1, groups=groups)
    if any(any(side) for side in crop):
        border = [-size for side in reversed(crop) for size in side]
        made = node.reading.add("pad", f"{node.label}_crop", made, options={"pad": border})
    return made


def _axes(node: Operation, shape: tuple[int, ...]) -> int:
    if len(shape) not in (3, 4):
        node.refuse(f"has {len(shape) - 2} axes of places", "one or two are read")
    return len(shape) - 2


def read_gemm(node: Operation) -> Current:
    """Gemm: alpha · x · weight + beta · bias."""
    weight, bias, alpha = node.inputs[1], node.constant(2), float(node.get("alpha", 1.0))
    if node.get("transA", 0):
        node.refuse("has transA", "export a plain linear layer, on [batch, features]")
    if isinstance(weight, Whole):
        scale = weight.scale.astype(np.float64) * abs(alpha)
        weight = replace(weight, integers=weight.integers * (-1 if alpha < 0 else 1), scale=scale)
    elif weight is not None:
        weight = np.asarray(node.constant(1)).astype(np.float64) * alpha
    if bias is not None:
        bias = bias.astype(np.float64) * float(node.get("beta", 1.0))
    return _linear(node, weight, bias, turned=not node.get("transB", 0))


def read_matmul(node: Operation) -> Current:
    """MatMul."""
    return _linear(node, node.inputs[1], None, turned=True)


def _linear(node: Operation, weight: Operand | None, bias: Constant | None, *, turned: bool) -> Current:
    if not isinstance(weight, (Whole, np.ndarray)):
        node.refuse("has a weight that depends on the image", _WEIGHTS)
    shape = weight.integers.shape if isinstance(weight, Whole) else weight.shape
    if len(shape) != 2:
        node.refuse(f"has a weight of shape {list(shape)}", "a linear layer has two axes")
    rows, columns = shape[::-1] if turned else shape
    bias = None if bias is None else np.broadcast_to(bias.reshape(-1), rows)
    options = {"in_features": columns, "out_features": rows}
    return _weighted(node, "linear", weight, bias, options, node.signal(), outputs=1 if turned else 0, turned=turned)


def _weighted(node: Operation, kind: str, weight: Operand | None, bias: Constant | None, options: Mapping[str, Any], x: Current,
              *, outputs: int = 0, groups: int = 1, turned: bool = False) -> Current:  # fmt: skip
    """A layer with a weight.

    Args:
        outputs: the weight's axis of output channels, or of those of one of the groups.
        groups: of which each has these output channels.
        turned: whether the layer here has the weight transposed.
    """
    reading = node.reading
    if not isinstance(weight, (Whole, np.ndarray)):
        node.refuse("has a weight that depends on the image", _WEIGHTS)
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
    if weight.scale.size > 1 and weight.axis != outputs:
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
    shape = (-1, *(1 for _ in numbers.shape[1:]))
    reading.scales[made.step] = unit.reshape(()) if single else np.tile(unit, groups).reshape(shape)
    return made


def read_norm(node: Operation) -> Current:
    if node.get("training_mode", 0):
        node.refuse("computes statistics of the batch", "export in evaluation mode")
    weight, bias, mean, var = (node.constant(index) for index in range(1, 5))
    x = node.signal()
    axes = len(node.reading.shape(x)) - 1
    options = {"num_features": node.reading.shape(x)[0], "eps": float(node.get("epsilon", 1e-5))}
    made = node.reading.add(f"norm{2 if axes == 2 else 1}d", node.label, x, options=options)
    tensors = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    node.reading.state[made.step] = {key: np.asarray(value) for key, value in tensors.items()}
    return made
