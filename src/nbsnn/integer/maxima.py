"""Readers of max pools; a min pool is the negative of a max pool of negatives."""

from collections.abc import Mapping
from typing import Any

import torch

from nbsnn.integer.affine import Affine, NoForm, Term, ValueTable
from nbsnn.integer.calls import Context, arguments, shape_of, sides
from nbsnn.integer.maps import AxisMap, PlaneMap
from nbsnn.integer.nodes import IMAGE
from nbsnn.integer.program import count_values
from nbsnn.shapes import plane


def max_pool(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
    given = arguments("input kernel_size stride padding dilation ceil_mode", args, kwargs, stride=None, padding=0, dilation=1)
    x = context.input(args, kwargs)
    lines = len(x.shape) == 2
    kernel, padding, dilation = (sides(given[key], alone, lines) for key, alone in (
        ("kernel_size", 1), ("padding", 0), ("dilation", 1)))  # fmt: skip
    stride = sides(given["stride"], 1, lines) if given["stride"] not in (None, [], ()) else kernel
    axes = []
    for n, m, k, s, p, d in zip(plane(x.shape)[1:], _places(context), kernel, stride, padding, dilation, strict=True):
        at = torch.arange(m) * s - p + torch.arange(k)[:, None] * d
        axes.append(_windows(torch.where(at < n, at, -1), n))
    return _maxima(x, context.values, PlaneMap(*axes), shape_of(context.result))


def adaptive_max_pool(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
    x = context.input(args, kwargs)
    axes = []
    for n, m in zip(plane(x.shape)[1:], _places(context), strict=True):
        number = torch.arange(m)
        start, end = number * n // m, -(-(number + 1) * n // m)
        at = start + torch.arange(int((end - start).max()))[:, None]
        axes.append(_windows(torch.where(at < end, at, -1), n))
    return _maxima(x, context.values, PlaneMap(*axes), shape_of(context.result))


def _places(context: Context) -> tuple[int, ...]:
    return plane(shape_of(context.result))[1:]


def _windows(index: torch.Tensor, size: int) -> AxisMap:
    """From places [K, n], negative ones being none."""
    index = index.clamp_min(-1).to(torch.int32)
    return AxisMap(index, (index >= 0).to(torch.int32), size)


def _maxima(x: Affine, values: ValueTable, windows: PlaneMap, shape: tuple[int, ...]) -> Affine:
    """The maxima of x: each channel is the counts of one neuron layer times a gain, and the minima if this is negative."""
    counted = count_values(values.nodes, values.shapes.keys() - {IMAGE} - {node.name for node in values.nodes})
    takes = [term.take for term in x.terms if term.synapse is None and term.value in counted]
    used = [(take >= 0) & (term.gain != 0) for take, term in zip(takes, x.terms, strict=False)]
    single = len(takes) == len(x.terms) and int(torch.stack(used).sum(0).max()) <= 1
    if not single or (x.is_shifted and x.shift.numel() != x.channels):
        raise NoForm("a max pool of neurons of several channels or layers", "pool before the currents are rearranged")
    terms = []
    for term, take, there in zip(x.terms, takes, used, strict=True):
        for lowest in (False, True):
            own = there & (term.gain < 0 if lowest else term.gain > 0)
            if bool(own.any()):
                value = values.maximum(term.value, windows, (values.shapes[term.value][0], *shape[1:]), lowest=lowest)
                terms.append(Term(value, torch.where(own, term.gain, 0.0), torch.where(own, take, -1)))
    return Affine(tuple(terms), x.shift, shape)
