"""Operators of ONNX that pool places: maxima and averages of windows and of all places."""

from dataclasses import replace
from typing import Any, NamedTuple

from nbsnn.importers.onnx.operation import Operation
from nbsnn.importers.onnx.values import Current
from nbsnn.importers.onnx.windows import PerAxis, count_places, pads_of


class _Window(NamedTuple):
    kernel: PerAxis
    stride: PerAxis
    dilation: PerAxis
    before: PerAxis  # padding
    after: PerAxis


def _window(node: Operation) -> _Window:
    kernel, sizes = node.whole("kernel_shape", []), node.reading.shape(node.raw())[1:]
    axes = len(kernel)
    if axes not in (1, 2) or len(sizes) != axes or node.get("storage_order", 0):
        node.refuse("has another layout", "pool one or two axes of places")
    stride, dilation = node.whole("strides", [1] * axes), node.whole("dilations", [1] * axes)
    return _Window(kernel, stride, dilation, *pads_of(node, sizes, kernel, stride, dilation))


def _ceil_mode(node: Operation, window: _Window, *, bordered: bool = False) -> bool | None:
    """The ceil_mode in which torch, which pads both sides alike, has as many windows; None if neither has.

    What is behind the last place is never chosen or counted, so that nothing else depends on it. With `bordered` the padding
    is a border of the signal already.
    """
    kernel, stride, dilation, before, after = window
    ceil = bool(node.get("ceil_mode", 0))
    places = node.reading.shape(node.raw())[1:]
    wanted: list[int] = []
    found: dict[bool, list[int]] = {True: [], False: []}
    for size, k, s, d, first, last in zip(places, kernel, stride, dilation, before, after, strict=True):
        wanted.append(count_places(size, k, s, d, first, last, ceil=ceil))
        for mode, counts in found.items():
            padded, both = (size + first + last, 0) if bordered else (size, first)
            counts.append(count_places(padded, k, s, d, both, both, ceil=mode))
    fits = bordered or all(2 * first <= size for first, size in zip(before, kernel, strict=True))
    return next((mode for mode in (ceil, not ceil) if fits and found[mode] == wanted), None)


def read_max_pool(node: Operation) -> Current:
    kernel, stride, dilation, before, _ = window = _window(node)
    mode = _ceil_mode(node, window)
    if mode is None:
        node.refuse("has padding that differs between sides or exceeds half a window", "pad both sides alike")
    options = {"kernel_size": kernel, "stride": stride, "padding": before, "dilation": dilation, "ceil_mode": mode}
    return node.moved(f"max pool {len(kernel)}d", options)


def read_largest(node: Operation) -> Current:
    """GlobalMaxPool, and ReduceMax over all places."""
    sizes = node.reading.shape(node.raw())[1:]
    if len(sizes) not in (1, 2) or (node.kind == "ReduceMax" and set(_axes(node)) != set(range(2, len(sizes) + 2))):
        node.refuse("has another layout", "take the maximum over one or two axes of places")
    made = node.moved(f"max pool {len(sizes)}d", {"kernel_size": sizes})
    if node.kind == "GlobalMaxPool" or node.get("keepdims", 1):
        return made
    return node.moved("flatten", {}, made)


def read_average_pool(node: Operation) -> Current:
    kernel, stride, dilation, before, after = window = _window(node)
    if any(size != 1 and by != 1 for size, by in zip(kernel, dilation, strict=True)):
        node.refuse("has dilated windows", "use plain average pools")
    x, counted = node.signal(), bool(node.get("count_include_pad", 0))
    mode = _ceil_mode(node, window, bordered=counted)
    if mode is None:
        node.refuse("has padding that differs between sides or exceeds half a window", "pad both sides alike")
    options: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "ceil_mode": mode}
    if counted and (any(before) or any(after)):
        border = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
        x = node.reading.add("pad", f"{node.label}_pad", x, options={"pad": border})
    elif not counted:
        options |= {"padding": before, "count_include_pad": False}
    return node.reading.add(f"average pool {len(kernel)}d", node.label, x, options=options)


def read_mean(node: Operation) -> Current:
    """ReduceMean and ReduceSum over axes of places, and GlobalAveragePool."""
    x = node.signal()
    shape = node.reading.shape(x)
    axes = list(range(2, len(shape) + 1)) if node.kind == "GlobalAveragePool" else _axes(node)
    if not axes:
        return x
    keep = node.kind == "GlobalAveragePool" or bool(node.get("keepdims", 1))
    options = {"keep": keep} if len(axes) == len(shape) - 1 else {"keep": keep, "axes": axes}
    made = node.reading.add("mean", node.label, x, options=options)
    count = 1
    for axis in axes:
        count *= shape[axis - 1]
    return replace(made, gain=float(count)) if node.kind == "ReduceSum" else made


def _axes(node: Operation) -> list[int]:
    """The axes that a reduction names: places."""
    rank = len(node.reading.shape(node.raw())) + 1
    given = node.numbers("axes", 1)
    if not given:
        if node.get("noop_with_empty_axes", 0):
            return []
        node.refuse("reduces all axes, the batch among them", "name the axes of places")
    return sorted(node.place_axis(axis, rank, first=2) for axis in given)
