"""Resize of ONNX as the function of torch that moves places in the same way.

Both define an interpolation along each axis by a matrix, [places of the result, places of the input]. It is computed as ONNX
defines it, from coordinates and a kernel, and compared with what torch's functions do to an axis.
"""

from collections.abc import Sequence
from math import floor

import numpy as np
import torch

from nbsnn.importers.onnx.operation import Operation
from nbsnn.importers.onnx.values import Constant, Current
from nbsnn.models.steps import FUNCTIONS

_KINDS = {
    "nearest": ("resize nearest", "resize nearest exact"),
    "linear": ("resize linear", "resize linear to corners"),
    "cubic": ("resize cubic", "resize cubic to corners"),
}
_NEAR = 1e-5  # of two weights: files hold factors in single precision
_MOST = 2**24  # numbers in a matrix
_REMEDY = (
    "export with coordinates that torch has: nearest asymmetric with floor or half_pixel with round_prefer_ceil, linear and "
    "cubic half_pixel or align_corners"
)


def read_resize(node: Operation) -> Current:
    """Resize, and Upsample of older versions."""
    shape = node.reading.shape(node.raw())
    sizes, factors = _sizes(node, shape)
    places = list(zip(shape[1:], sizes[1:], factors[1:], strict=True))
    if (sizes[0], factors[0]) != (shape[0], 1.0) or not 1 <= len(places) <= 2:
        node.refuse("resizes channels, or other than one or two axes of places", "resize places only")
    if tuple(sizes) == shape and all(factor == 1 for factor in factors):
        return node.raw()
    mode = node.word("mode", "nearest")
    if mode not in _KINDS or (mode == "cubic" and len(places) == 1):
        node.refuse(f"has mode={mode!r} for {len(places)} axes of places", "use nearest or linear, or cubic for two axes")
    unread = ("antialias", "exclude_outside") if mode == "cubic" else ("antialias",)
    odd = [name for name in unread if node.get(name, 0)]
    if odd or node.word("keep_aspect_ratio_policy", "stretch") != "stretch":
        node.refuse(f"has {', '.join(odd) or 'keep_aspect_ratio_policy'}", "export without it")
    if any(n * max(n, m) > _MOST for n, m, _ in places):
        node.refuse(f"makes {[m for _, m, _ in places]} places of {[n for n, _, _ in places]}", "resize smaller images")
    wanted = [_matrix(node, mode, *place) for place in places]
    for kind in _KINDS[mode]:
        for options in ({"size": sizes[1:]}, {"factors": factors[1:]}):
            if all(_does(kind, options, axis, shape[1:], matrix) for axis, matrix in enumerate(wanted)):
                return node.moved(kind, options) if mode == "nearest" else node.reading.add(
                    kind, node.label, node.signal(), options=options)  # fmt: skip
    coordinates = _coordinates(node)
    rounding = f" and nearest_mode={_rounding(node)!r}" if mode == "nearest" else ""
    return node.refuse(f"has coordinates that torch has not: mode={mode!r}, {coordinates!r}{rounding}", _REMEDY)


def _sizes(node: Operation, shape: tuple[int, ...]) -> tuple[list[int], list[float]]:
    """Sizes and factors of all axes but the batch."""
    rank = len(shape) + 1
    scales = node.constant(1 if _is_early(node) else 2)
    wanted = node.constant(3)
    axes = [axis % rank for axis in node.whole("axes", list(range(rank)))]
    given = wanted if wanted is not None and wanted.size else scales
    if given is None or given.size != len(axes) or not (np.isfinite(given).all() and given.size):
        node.refuse("does not say its sizes or factors", "export with fixed sizes")
    numbers = dict(zip(axes, given.reshape(-1).tolist(), strict=True))
    if given is wanted:
        sizes = [int(numbers.get(i, n)) for i, n in enumerate(shape, 1)]
        factors = [size / n for size, n in zip(sizes, shape, strict=True)]
    else:
        factors = [float(numbers.get(i, 1.0)) for i in range(1, rank)]
        sizes = [floor(n * factor) for n, factor in zip(shape, factors, strict=True)]
        if numbers.get(0, 1) != 1:
            node.refuse("resizes the batch", "resize places only")
    if min(sizes) < 1 or max(sizes) > 2**20:
        node.refuse(f"makes the sizes {sizes}", "export it again")
    return sizes, factors


def _is_early(node: Operation) -> bool:
    """Whether it is Upsample, or Resize of version 10, which has no other coordinates."""
    return node.kind == "Upsample" or not (node.has(2) or node.has(3))


def _coordinates(node: Operation) -> str:
    return node.word("coordinate_transformation_mode", "asymmetric" if _is_early(node) else "half_pixel")


def _rounding(node: Operation) -> str:
    return node.word("nearest_mode", "floor" if _is_early(node) else "round_prefer_floor")


def _matrix(node: Operation, mode: str, size: int, places: int, factor: float) -> Constant:
    """The interpolation of an axis, as ONNX defines it."""
    matrix, kind = np.zeros((places, size)), _coordinates(node)
    for row in range(places):
        at = _read_at(node, kind, row, size, places, factor)
        if mode == "nearest":
            weights = {_rounded(node, at): 1.0}
        else:
            first = floor(at)
            share = at - first
            weights = {first: 1 - share, first + 1: share}
            if mode == "cubic":
                weights = _cubic(first, share, float(node.get("cubic_coeff_a", -0.75)))
        for place, weight in weights.items():
            matrix[row, min(max(place, 0), size - 1)] += weight
    return matrix


def _read_at(node: Operation, kind: str, row: int, size: int, places: int, factor: float) -> float:
    """The coordinate in the input of a place of the result."""
    if kind == "align_corners":
        return row * (size - 1) / (places - 1) if places > 1 else 0.0
    if kind == "asymmetric":
        return row / factor
    if kind == "pytorch_half_pixel" and places == 1:
        return 0.0
    if kind == "half_pixel_symmetric":
        return size / 2 * (1 - places / (factor * size)) + (row + 0.5) / factor - 0.5
    if kind not in ("half_pixel", "pytorch_half_pixel"):
        node.refuse(f"has coordinate_transformation_mode={kind!r}", _REMEDY)
    return (row + 0.5) / factor - 0.5


def _rounded(node: Operation, at: float) -> int:
    kind = _rounding(node)
    found = {
        "floor": floor(at), "ceil": -floor(-at), "round_prefer_ceil": floor(at + 0.5), "round_prefer_floor": -floor(0.5 - at),
    }.get(kind)  # fmt: skip
    return found if found is not None else node.refuse(f"has nearest_mode={kind!r}", _REMEDY)


def _cubic(first: int, share: float, a: float) -> dict[int, float]:
    """Keys' kernel."""

    def near(x: float) -> float:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: float) -> float:
        return a * (((x - 5) * x + 8) * x - 4)

    return {first - 1: far(share + 1), first: near(share), first + 1: near(1 - share), first + 2: far(2 - share)}


def _does(kind: str, options: dict[str, list[int]] | dict[str, list[float]], axis: int, sizes: Sequence[int], matrix: Constant
          ) -> bool:  # fmt: skip
    """Whether a step does to an axis what a matrix does."""
    line = torch.eye(sizes[axis], dtype=torch.float64)
    shape = [sizes[axis] if other == axis else 1 for other in range(len(sizes))]
    one = {key: [value if other == axis else 1 for other, value in enumerate(values)] for key, values in options.items()}
    try:
        seen = FUNCTIONS[kind](line.view(sizes[axis], 1, *shape), **one)
    except (RuntimeError, ValueError):
        return False
    found = seen.reshape(sizes[axis], -1).T.numpy()
    return found.shape == matrix.shape and bool(np.abs(found - matrix).max() < _NEAR)
