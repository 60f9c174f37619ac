"""Values that are sums, maxima or other places of earlier ones, and the outputs of a network, in any type of number."""

from typing import Any

import numpy as np
import torch

from nbsnn.export.onnx.graph import Array, Graph
from nbsnn.integer.frozen import thawed
from nbsnn.integer.maps import AxisMap, PlaneMap
from nbsnn.integer.nodes import Flatten, MaxPool, Resample, SumPool
from nbsnn.integer.readout import Group, Output, Readout
from nbsnn.shapes import plane

Structural = SumPool | Resample | MaxPool | Flatten
Shape = tuple[int, ...]


def place_node(graph: Graph, node: Structural, x: str, shape: Shape, dtype: Any) -> str:
    """The value of a node, of x [batch, *shape] in a type that holds its sums."""
    if isinstance(node, Flatten):
        return graph.op("Flatten", x, name=node.name, axis=1)
    planes = as_planes(graph, x, shape, f"{node.name}/planes")
    if isinstance(node, MaxPool):
        made = _extreme(graph, node, planes, dtype)
    else:
        change = node.map if isinstance(node, Resample) else window_sums(node, shape)
        made = apply_map(graph, change, planes, dtype, name=f"{node.name}/sum")
    return graph.reshape(made, node.shape, name=node.name)


def as_planes(graph: Graph, x: str, shape: Shape, name: str) -> str:
    """x as [batch, C, H, W]."""
    return x if len(shape) == 3 else graph.reshape(x, plane(shape), name=name)


def window_sums(node: SumPool, shape: Shape) -> PlaneMap:
    """The windows of a sum as a map of places."""

    def axis(size: int, kernel: int, stride: int, padding: int) -> AxisMap:
        first = torch.arange((size + 2 * padding - kernel) // stride + 1) * stride - padding
        index = first + torch.arange(kernel)[:, None]
        index = torch.where((index >= 0) & (index < size), index, -1).to(torch.int32)
        return AxisMap(index, (index >= 0).to(torch.int32), size)

    rows, columns = map(axis, plane(shape)[1:], node.kernel, node.stride, node.padding)
    return PlaneMap(rows, columns)


def apply_map(graph: Graph, change: PlaneMap, x: str, dtype: Any, *, name: str) -> str:
    """A linear map of the places of x [batch, C, H, W]: a choice of places, or a product with a matrix for each axis."""
    for axis, number in ((change.rows, 2), (change.columns, 3)):
        if axis.is_identity:
            continue
        if axis.chooses and bool((thawed(axis.index) >= 0).all()):
            x = _chosen(graph, x, thawed(axis.index)[0].numpy(), number, f"{name}/{_AXES[number]}")
            continue
        matrix = axis.matrix().numpy()
        if number == 2:
            x = graph.op("MatMul", graph.constant(matrix, dtype, f"{name}/rows.matrix"), x, name=f"{name}/rows")
        else:
            x = graph.op("MatMul", x, graph.constant(matrix.T, dtype, f"{name}/columns.matrix"), name=f"{name}/columns")
    return x


_AXES = {2: "rows", 3: "columns"}


def _chosen(graph: Graph, x: str, index: Array, axis: int, name: str) -> str:
    return graph.op("Gather", x, graph.constant(index, np.int64, f"{name}.index"), name=name, axis=axis)


def _extreme(graph: Graph, node: MaxPool, x: str, dtype: Any) -> str:
    """The maximum or minimum over windows: MaxPool for regular ones, in a type that it takes, else choices one by one."""
    kind = "Min" if node.lowest else "Max"
    windows = [_regular(axis) for axis in (node.map.rows, node.map.columns)]
    if None not in windows and dtype in (np.uint8, np.float32):
        kernel, stride, dilation, before, after = zip(*(w for w in windows if w), strict=True)
        options = {"kernel_shape": kernel, "strides": stride, "dilations": dilation, "pads": (*before, *after)}
        x = _turned(graph, x, dtype, f"{node.name}/turned") if node.lowest else x
        x = graph.op("MaxPool", x, name=f"{node.name}/pool", **options)
        return _turned(graph, x, dtype, f"{node.name}/back") if node.lowest else x
    for axis, number in ((node.map.rows, 2), (node.map.columns, 3)):
        if axis.is_identity:
            continue
        index = thawed(axis.index).numpy()
        index = np.where(index < 0, index.max(0), index)  # another place of the window, in place of nothing
        parts = [_chosen(graph, x, row, number, f"{node.name}/{_AXES[number]}/{k}") for k, row in enumerate(index)]
        x = parts[0] if len(parts) == 1 else graph.op(kind, *parts, name=f"{node.name}/{_AXES[number]}")
    return x


def _turned(graph: Graph, x: str, dtype: Any, name: str) -> str:
    """255 − x of bytes, −x of floats: the order reversed."""
    if dtype == np.float32:
        return graph.op("Neg", x, name=name)
    return graph.op("Sub", graph.constant(255, np.uint8, "most.255"), x, name=name)


def _regular(axis: AxisMap) -> tuple[int, int, int, int, int] | None:
    """Kernel, stride, dilation and padding before and after, of windows that a pool has; None for other windows."""
    index = thawed(axis.index).numpy()
    kernel, places = index.shape
    inside = [(int(k), int(i)) for k, i in np.argwhere(index >= 0)]
    # Two places of one row tell the stride, two of one window the dilation.
    steps = [{int(d) for d in np.diff(line[line >= 0])} for lines in (index, index.T) for line in lines]
    strides, dilations = set().union(*steps[:kernel]), set().union(*steps[kernel:])
    if len(strides) > 1 or len(dilations) > 1 or not inside:
        return None
    stride, dilation = next(iter(strides), 1), next(iter(dilations), 1)
    (k, i), reach = inside[0], dilation * (kernel - 1)
    before = i * stride + k * dilation - int(index[k, i])
    expected = np.arange(places) * stride - before + np.arange(kernel)[:, None] * dilation
    expected = np.where((expected >= 0) & (expected < axis.size), expected, -1)
    after = (places - 1) * stride - before + reach + 1 - axis.size
    if not np.array_equal(expected, index) or stride < 1 or dilation < 1 or not 0 <= before < kernel or after >= kernel:
        return None
    for last in (before, max(after, 0)):  # the same on both sides if that makes as many windows
        if (axis.size + before + last - reach - 1) // stride + 1 == places:
            return kernel, stride, dilation, before, last
    return None


# ------------------------------------------------------------------------------------------------------------- outputs


def place_outputs(graph: Graph, readout: Readout | None, heads: list[str], shapes: list[Shape], dtype: Any) -> list[str]:
    """The outputs of the graph, in float32, from the numbers of all heads, [batch, *shape] in `dtype`; their names."""
    if readout is None:
        graph.output("logits", graph.cast(heads[0], np.float32, name="head/logits"), np.float32, shapes[0])
        return ["logits"]
    flat = [graph.op("Flatten", head, name=f"head.{i}/flat", axis=1) for i, head in enumerate(heads)]
    named = output_names(readout.tree)
    for index, name in named.items():
        output = readout.outputs[index]
        value = graph.cast(_output(graph, output, flat, dtype, f"outputs/{name}"), np.float32, name=f"outputs/{name}/float")
        graph.output(name, graph.reshape(value, output.shape, name=f"outputs/{name}/shape"), np.float32, output.shape)
    return list(named.values())


def output_names(tree: Group | int | None, name: str = "") -> dict[int, str]:
    """Names of the outputs by their index: "logits" for the only one, keys and numbers joined by dots in dicts and tuples."""
    if not isinstance(tree, Group):
        return {} if tree is None else {tree: name or "logits"}
    keys = tree.keys or range(len(tree.items))
    found: dict[int, str] = {}
    for key, item in zip(keys, tree.items, strict=True):
        found |= output_names(item, f"{name}.{key}" if name else str(key) if tree.keys else f"output.{key}")
    return found


def _output(graph: Graph, output: Output, flat: list[str], dtype: Any, name: str) -> str:
    """[batch, n] of the flattened heads, in `dtype`: the constant first, then the parts in order."""
    total = None if output.shift is None else graph.constant(thawed(output.shift).numpy(), dtype, f"{name}.shift")
    for number, part in enumerate(output.parts):
        index, where = thawed(part.index).numpy(), f"{name}/part{number}"
        value = flat[part.head]
        if not np.array_equal(index, np.arange(len(index))) or number or output.shift is not None:
            value = _chosen(graph, value, np.maximum(index, 0), 1, where)
        if part.gain is not None:
            gain = graph.constant(thawed(part.gain).numpy(), dtype, f"{where}.gain")
            value = graph.op("Mul", value, gain, name=f"{where}/gain")
        if (index < 0).any():
            there, zero = graph.constant(index >= 0, np.bool_, f"{where}.there"), graph.constant(0, dtype, "zero")
            value = graph.op("Where", there, value, zero, name=f"{where}/there")
        total = value if total is None else graph.op("Add", total, value, name=f"{name}/sum")
    assert total is not None
    if output.parts:
        return total
    rows = graph.op("Shape", flat[0], name=f"{name}/batch", start=0, end=1)
    count = graph.constant([int(np.prod(output.shape))], np.int64, f"{name}.count")
    size = graph.op("Concat", rows, count, name=f"{name}/size", axis=0)
    return graph.op("Expand", total, size, name=f"{name}/constant")
