"""Readers of functions that average, enlarge, reshape or select."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import lcm, prod
from typing import Any

import torch
from torch import Tensor

from nbsnn.integer.affine import Affine, NoForm, concatenated
from nbsnn.integer.arrangement import Arrangement, Form, added_up, chosen, reduced, simplest
from nbsnn.integer.calls import Context, Reader, arguments, pair, shape_of, sides
from nbsnn.integer.maps import AxisMap, PlaneMap
from nbsnn.integer.placing import pooled, resampled
from nbsnn.shapes import plane, window_places
from nbsnn.tracing import tensors_in

_MOST_DENOMINATOR = 2**12  # of the weights of an enlargement along one axis
_NEAR = 1e-6  # of such a weight, computed in double precision from a scale that may be a float


# ------------------------------------------------------------------------------------------------------------- averages


def average_pool(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
    given = arguments("input kernel_size stride padding ceil_mode count_include_pad divisor_override", args, kwargs,
                       stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None)  # fmt: skip
    x = context.input(args, kwargs)
    lines = len(x.shape) == 2
    kernel, padding = sides(given["kernel_size"], 1, lines), sides(given["padding"], 0, lines)
    stride = sides(given["stride"], 1, lines) if given["stride"] not in (None, [], ()) else kernel
    size, places, divisor = plane(x.shape)[1:], plane(shape_of(context.result))[1:], given["divisor_override"]
    alike = not any(padding) or given["count_include_pad"] or divisor
    if alike and window_places(size, kernel, stride, padding) == places:
        return pooled(
            x, context.values, kernel=kernel, stride=stride, padding=padding, divisor=divisor or kernel[0] * kernel[1]
        )
    axes = []
    for n, m, k, s, p in zip(size, places, kernel, stride, padding, strict=True):
        starts = [i * s - p for i in range(m)]
        spans = [(max(start, 0), min(start + k, n)) for start in starts]
        whole = [min(start + k, n + p) - start for start in starts]  # a window may reach beyond the padding
        counts = whole if given["count_include_pad"] else [b - a for a, b in spans]
        axes.append(_averages(spans, counts if divisor is None else [1] * m, n))
    return _mapped(context, x, axes, divisor or 1)


def adaptive_pool(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
    x = context.input(args, kwargs)
    size, out = plane(x.shape)[1:], plane(shape_of(context.result))[1:]
    if not any(n % m for n, m in zip(size, out, strict=True)):
        kernel = pair([n // m for n, m in zip(size, out, strict=True)])
        return pooled(x, context.values, kernel=kernel, stride=kernel, padding=(0, 0), divisor=kernel[0] * kernel[1])
    axes = []
    for n, m in zip(size, out, strict=True):
        spans = [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
        axes.append(_averages(spans, [b - a for a, b in spans], n))
    return _mapped(context, x, axes, 1)


def _averages(spans: Sequence[tuple[int, int]], counts: Sequence[int], size: int) -> tuple[AxisMap, int]:
    """Sums over spans of one axis, each over its count, and the common divisor."""
    common = lcm(*counts)
    matrix = torch.zeros(len(spans), size, dtype=torch.int64)
    for row, (start, end), count in zip(matrix, spans, counts, strict=True):
        row[start:end] = common // count
    return AxisMap.of_matrix(matrix), common


def _mapped(context: Context, x: Affine, axes: Sequence[tuple[AxisMap, int]], divisor: float) -> Affine:
    (rows, over), (columns, under) = axes
    return resampled(
        x,
        context.values,
        PlaneMap(rows, columns),
        divisor=divisor * over * under,
        shape=(x.channels, *shape_of(context.result)[1:]),
    )


def interpolation(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
    """Nearest, linear and cubic enlargements: each axis is read off what the function does to its places."""
    x = context.input(args, kwargs)
    rest = {key: value for key, value in kwargs.items() if key not in ("input", "self")}
    axes = []
    for axis, size in enumerate(x.shape[1:], start=2):
        line = torch.eye(size, dtype=torch.float64).view(
            size, 1, *(size if a == axis else 1 for a in range(2, len(x.shape) + 1))
        )
        seen = func(line.expand(size, 1, *x.shape[1:]).contiguous(), *args[1:], **rest)
        axes.append(_rational(seen.movedim(axis, 1).reshape(size, seen.shape[axis], -1)[..., 0].T))
    if len(axes) == 1:
        axes.insert(0, (AxisMap.choosing(torch.zeros(1, dtype=torch.int64), 1), 1))
    return _mapped(context, x, axes, 1)


def _rational(matrix: Tensor) -> tuple[AxisMap, int]:
    """Integers over a common divisor that make a matrix."""
    fractions = {value: Fraction(value).limit_denominator(_MOST_DENOMINATOR) for value in set(matrix.flatten().tolist())}
    common = lcm(*(fraction.denominator for fraction in fractions.values()))
    if common > _MOST_DENOMINATOR or any(abs(value - float(fraction)) > _NEAR for value, fraction in fractions.items()):
        raise NoForm(
            "interpolate() has weights without a small common divisor",
            "choose an output size or a scale_factor that is a ratio of small integers, such as size=(2 * h, 2 * w)",
        )
    whole = [[int(fractions[value] * common) for value in row] for row in matrix.tolist()]
    return AxisMap.of_matrix(torch.tensor(whole)), common


def reduction(*, mean: bool) -> Reader:
    def read(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Form:
        given = arguments("input dim keepdim", args, kwargs, dim=None)
        x = context.form(args, kwargs)
        rank = len(x.shape) + 1
        dims = given["dim"] if isinstance(given["dim"], (tuple, list)) else [given["dim"]]
        axes = {d % rank for d in dims if d is not None}
        count = prod(x.shape[a - 1] for a in axes)
        if isinstance(x, Arrangement) or min(axes) < 2:
            kept = [a - 1 for a in range(1, rank) if a not in axes]
            index = torch.arange(prod(x.shape)).reshape(x.shape).permute(*kept, *(a - 1 for a in sorted(axes)))
            sums = reduced(x, index.reshape(-1, count), context.values)
            if sums is None:
                moved = isinstance(x, Arrangement)
                over = f"currents that were rearranged to {list(x.shape)}" if moved else "other axes than height and width"
                raise NoForm(f"a mean or sum over {over}", "reduce over dim=(2, 3)" + (" before that" if moved else ""))
            return simplest(_scaled(sums, 1 / count if mean else 1.0, shape_of(context.result)), context.values)
        sides = plane(x.shape)[1:]
        kernel = pair([n if axis - 4 + rank in axes else 1 for axis, n in enumerate(sides, start=2)])
        result = pooled(x, context.values, kernel=kernel, stride=kernel, padding=(0, 0), divisor=count if mean else 1)
        shape = shape_of(context.result)
        if shape == result.shape:
            return result
        return simplest(chosen(result, torch.arange(prod(shape)).reshape(shape)), context.values)

    return read


def _scaled(x: Affine, factor: float, shape: tuple[int, ...]) -> Arrangement:
    """x times a number, in another shape of as many elements."""
    whole = chosen(x, torch.arange(prod(shape)).reshape(shape))
    gain = torch.full(shape, factor, dtype=torch.float64)
    return Arrangement(tuple(replace(piece, gain=gain) for piece in whole.pieces), whole.shift * factor, shape)


# ----------------------------------------------------------------------------------------------------------- moving


def concatenation(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Form | list[Form]:
    given = arguments("tensors dim", args, kwargs, dim=0)
    parts = [context.of(t) for t in given["tensors"]]
    forms = [p for p in parts if isinstance(p, Affine)]
    if given["dim"] % context.result.dim() == 1 and len(forms) == len(parts):
        return concatenated(forms)
    return rearrangement(context, func, args, kwargs)


def unchanged(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Form:
    return context.form(args, kwargs)


def rearrangement(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Form | list[Form]:
    """Functions that only move elements: they are applied to the elements' numbers, from 1, to see where each one goes.

    Elements that are not there, such as zeros of a padding, are 0; constants are where the function puts them.
    """
    sources = list({id(t): t for t in tensors_in((args, kwargs)) if context.of(t) is not None}.values())
    many = isinstance(context.result, (tuple, list))
    count = len(context.result) if many else 1
    parts: list[list[Arrangement]] = [[] for _ in range(count)]
    for source in sources:
        form = context.of(source)
        assert form is not None
        for number, index in enumerate(_seen(func, args, kwargs, sources, source, form)):
            parts[number].append(chosen(form, index.long() - 1))
    shifts = _seen(func, args, kwargs, sources, None, None)
    found: list[Form] = []
    for arrangement, shift in zip(parts, shifts, strict=True):
        whole = added_up(arrangement, shift)
        pieces = tuple(piece for piece in whole.pieces if bool((piece.index >= 0).any())) or whole.pieces[:1]
        found.append(simplest(Arrangement(pieces, whole.shift, whole.shape), context.values))
    return found if many else found[0]


def _seen(func: Any, args: Any, kwargs: Any, sources: list[Tensor], source: Tensor | None, form: Form | None) -> list[Tensor]:
    """What a function makes of the numbers of one source, of zeros for the others; or, without a source, of the constants."""

    def stand_in(t: Tensor) -> Tensor:
        if t is source and form is not None:
            return torch.arange(1, prod(form.shape) + 1, dtype=torch.float64).reshape(1, *form.shape)
        if any(t is s for s in sources):
            return torch.zeros(t.shape, dtype=torch.float64)
        if not t.is_floating_point():
            return t
        return t.double() if source is None else torch.zeros_like(t, dtype=torch.float64)

    given, named = _replaced(args, stand_in), {key: _replaced(value, stand_in) for key, value in kwargs.items()}
    if func.__name__ == "pad" and source is not None:
        bound = arguments("input pad mode value", given, named, mode="constant", value=0)
        bound["value"] = 0.0 if bound["mode"] == "constant" else None
        result = func(bound.pop("input"), **bound)
    else:
        result = func(*given, **named)
    return [r[0] for r in (result if isinstance(result, (tuple, list)) else [result])]


def _replaced(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A tree of arguments with its tensors changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)([_replaced(item, change) for item in tree])
    return tree
