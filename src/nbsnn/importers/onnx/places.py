"""Operators of ONNX that move, copy, choose and pad values, and compute none."""

import numpy as np

from nbsnn.importers.onnx.constants import compute, slices_of
from nbsnn.importers.onnx.operation import Operand, Operation
from nbsnn.importers.onnx.values import Current

_PADS = {"constant": "pad", "reflect": "pad by reflection", "edge": "pad with the edge", "wrap": "pad around"}


def read_reshape(node: Operation) -> Operand:
    """Reshape, Flatten, Squeeze and Unsqueeze."""
    if not isinstance(node.inputs[0], Current):
        return compute(node)
    shape = node.reading.shape(node.raw())
    if node.kind == "Flatten":
        if int(node.get("axis", 1)) % (len(shape) + 1) != 1:
            node.refuse(f"flattens from axis {node.get('axis', 1)}", "keep the batch, and nothing beside it")
        return node.moved("flatten", {}) if len(shape) > 1 else node.raw()
    target = _reshape(node, shape) if node.kind == "Reshape" else _squeezed(node, shape)
    return node.raw() if tuple(target) == shape else node.moved("reshape", {"shape": target})


def _reshape(node: Operation, shape: tuple[int, ...]) -> list[int]:
    numbers = node.numbers("shape", 1) or ()
    if len(numbers) > 8:
        node.refuse(f"makes {len(numbers)} axes", "export it again")
    target = [shape[i - 1] if n == 0 and 0 < i <= len(shape) else n for i, n in enumerate(numbers)]
    if len(target) < 2 or target[0] > 1 or (target[0] == -1 and -1 in target[1:]):
        node.refuse(f"makes the shape {list(numbers)}", "keep the batch as the first axis")
    known = int(np.prod([n for n in target[1:] if n != -1], dtype=np.int64))
    return [int(np.prod(shape, dtype=np.int64)) // max(known, 1) if n == -1 else n for n in target[1:]]


def _squeezed(node: Operation, shape: tuple[int, ...]) -> list[int]:
    numbers = node.numbers("axes", 1) or ()
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
    return sides[1:]


def read_transpose(node: Operation) -> Operand:
    if not isinstance(node.inputs[0], Current):
        return compute(node)
    rank = len(node.reading.shape(node.raw())) + 1
    axes = node.whole("perm", list(reversed(range(rank))))
    if sorted(axes) != list(range(rank)) or axes[0] != 0:
        node.refuse(f"has perm={list(axes)}", "keep the batch, axis 0, where it is")
    return node.raw() if axes == tuple(range(rank)) else node.moved("permute", {"axes": axes})


def read_slice(node: Operation) -> Operand:
    if not isinstance(node.inputs[0], Current):
        return compute(node)
    shape = node.reading.shape(node.raw())
    x = node.raw()
    for axis, part in slices_of(node, len(shape) + 1).items():
        places = range((1, *shape)[axis])[part]
        if axis == 0 and (part.step != 1 or part.start > 0 or part.stop < 2**31 - 1):
            node.refuse("slices the batch", "slice one image's axes only")
        if not places:
            node.refuse(f"leaves nothing of axis {axis}", "export it again")
        x = _chosen(node, x, axis, places)
    return x


def read_gather(node: Operation) -> Operand:
    """Gather of one place, or of places at even distances."""
    if not isinstance(node.inputs[0], Current):
        return compute(node)
    shape, index = node.reading.shape(node.raw()), node.constant(1)
    axis = node.place_axis(int(node.get("axis", 0)), len(shape) + 1)
    assert index is not None
    size = shape[axis - 1]
    places = [int(place) + (size if place < 0 else 0) for place in index.reshape(-1)[: size + 1]]
    step = places[1] - places[0] if len(places) > 1 else 1
    even = range(places[0], places[0] + step * len(places), step) if places and step else range(0)
    if index.ndim > 1 or list(even) != places or not 0 <= min(places) <= max(places) < size:
        node.refuse("chooses places that are not at even distances", "choose them by slices")
    x = _chosen(node, node.raw(), axis, even)
    return node.moved("reshape", {"shape": [n for i, n in enumerate(shape, 1) if i != axis]}, x) if index.ndim == 0 else x


def _chosen(node: Operation, x: Current, axis: int, places: range) -> Current:
    """The places of an axis."""
    size = (1, *node.reading.shape(x))[axis]
    forward = places if places.step > 0 else places[::-1]
    if axis and forward != range(size):
        options = {"axis": axis, "start": forward[0], "stop": forward[-1] + 1} | (
            {"step": forward.step} if forward.step > 1 else {}
        )
        x = node.moved("slice", options, x)
    return x if places.step > 0 else node.moved("flip", {"axis": axis}, x)


def read_split(node: Operation) -> tuple[Current, ...]:
    shape, x = node.reading.shape(node.raw()), node.raw()
    axis = node.place_axis(int(node.get("axis", 0)), len(shape) + 1)
    size, given = shape[axis - 1], node.numbers("split", 1)
    count = int(node.get("num_outputs", node.results))
    each = -(-size // max(count, 1))
    sizes = given or tuple(min(each, size - each * i) for i in range(count))
    if sum(sizes) != size or min(sizes) < 1 or len(sizes) != node.results:
        node.refuse(f"splits {size} into {list(sizes)}", "export it again")
    ends = np.cumsum(sizes).tolist()
    return tuple(_chosen(node, x, axis, range(end - n, end)) for n, end in zip(sizes, ends, strict=True))


def read_pad(node: Operation) -> Current:
    mode, pads = node.word("mode", "constant"), node.numbers("pads", 1)
    value = node.scalar(2, "value") if node.has(2) else float(node.get("value", 0.0))
    rank = len(node.reading.shape(node.raw())) + 1
    axes = node.numbers("axes", 3) or tuple(range(rank))
    if mode not in _PADS or pads is None or len(pads) != 2 * len(axes):
        node.refuse(f"has mode={mode!r} and {len(pads or ())} pads", f"use one of the modes {', '.join(_PADS)}")
    sides = [(0, 0)] * rank
    for axis, before, after in zip(axes, pads, pads[len(axes) :], strict=False):
        sides[axis % rank] = (before, after)
    if any(sides[0]) or (any(sides[1]) and mode != "constant"):
        node.refuse("pads the batch, or copies channels", "pad places only")
    first = 1 if any(sides[1]) else 2
    if mode == "constant" and any(any(side) for side in sides):
        first = next(axis for axis, side in enumerate(sides) if any(side))
    elif not any(any(side) for side in sides):
        return node.raw()
    options = {"pad": [n for side in reversed(sides[first:]) for n in side]}
    if mode == "constant" and value:
        return node.reading.add("pad with a value", node.label, node.signal(), options={**options, "value": float(value)})
    return node.reading.add(_PADS[mode], node.label, node.signal(), options=options)


def read_depth_to_space(node: Operation) -> Current:
    shape, factor = node.reading.shape(node.raw()), int(node.get("blocksize", 0))
    if len(shape) != 3 or factor < 1 or shape[0] % factor**2:
        node.refuse(f"moves blocks of {factor} places out of the shape {list(shape)}", "export it again")
    x = node.raw()
    if node.word("mode", "DCR") != "CRD":  # torch has the channel before the place in a block, ONNX behind it
        x = _exchanged(node, x, (factor**2, shape[0] // factor**2))
    return node.moved("shuffle to places", {"factor": factor}, x)


def read_space_to_depth(node: Operation) -> Current:
    shape, factor = node.reading.shape(node.raw()), int(node.get("blocksize", 0))
    if len(shape) != 3 or factor < 1 or shape[1] % factor or shape[2] % factor:
        node.refuse(f"moves blocks of {factor} places of the shape {list(shape)}", "export it again")
    made = node.moved("shuffle to channels", {"factor": factor})
    return _exchanged(node, made, (shape[0], factor**2))


def _exchanged(node: Operation, x: Current, channels: tuple[int, int]) -> Current:
    """Channels that are numbered by two axes, numbered by the second one first."""
    count, *places = node.reading.shape(x)
    apart = node.moved("reshape", {"shape": [*channels, *places]}, x)
    turned = node.moved("permute", {"axes": [0, 2, 1, 3, 4]}, apart)
    return node.moved("reshape", {"shape": [count, *places]}, turned)
