"""Maps of places of affine functions: window sums, other maps with integer weights, and flattening."""

from dataclasses import replace
from itertools import product
from math import prod

import torch
import torch.nn.functional as F

from nbsnn.integer.affine import Affine, Synapse, Term, ValueTable, compact
from nbsnn.integer.maps import AxisMap, PlaneMap
from nbsnn.integer.nodes import Pair, Resample
from nbsnn.shapes import plane, window_places

_MOST_WIDENED = 64  # places of a window that is folded into a weight: beyond, the weights would take too much memory


def pooled(x: Affine, values: ValueTable, *, kernel: Pair, stride: Pair, padding: Pair, divisor: float) -> Affine:
    """Window sums over `divisor`. After a synapse the window is folded into its weight."""
    size = plane(x.shape)[1:]
    out = window_places(size, kernel, stride, padding)
    shape = (x.channels, *out[2 - len(x.shape[1:]) :])

    def pool(term: Term) -> Term:
        gain = term.gain / divisor
        if term.synapse is None:
            return replace(term, gain=gain, value=values.pool(term.value, kernel, stride, padding, shape[1:]))
        if term.after is None and not any(padding) and kernel[0] * kernel[1] <= _MOST_WIDENED:
            return replace(term, gain=gain, synapse=_widened(term.synapse, kernel, stride))
        sums = PlaneMap(*(_windows(n, m, k, s, p) for n, m, k, s, p in zip(size, out, kernel, stride, padding, strict=True)))
        return replace(term, gain=gain, after=sums.after(term.after))

    if x.shift.numel() == x.channels and not (any(padding) and x.is_shifted):
        shift = x.shift * (kernel[0] * kernel[1] / divisor)
    else:
        shift = compact(F.avg_pool2d(x.whole_shift(), kernel, stride, padding, divisor_override=1) / divisor, shape)
    return Affine(tuple(pool(t) for t in x.terms), shift, shape)


def _windows(size: int, places: int, kernel: int, stride: int, padding: int) -> AxisMap:
    """Window sums along one axis."""
    at = torch.arange(places)[None] * stride - padding + torch.arange(kernel)[:, None]
    index = torch.where((at >= 0) & (at < size), at, -1)
    return AxisMap(index.to(torch.int32), (index >= 0).to(torch.int32), size)


def resampled(x: Affine, values: ValueTable, change: PlaneMap, *, divisor: float, shape: tuple[int, ...]) -> Affine:
    """x with its places mapped, over `divisor`; `shape` is that of the result."""

    def resample(term: Term) -> Term:
        gain = term.gain / divisor
        if term.synapse is not None:
            return replace(term, gain=gain, after=change.after(term.after))
        channels = values.shapes[term.value][0]
        return replace(term, gain=gain, value=values.resample(term.value, change, (channels, *shape[1:])))

    if change.is_identity:
        return x
    shift = x.shift.new_zeros(shape[0], *(1 for _ in shape[1:]))
    if x.is_shifted:
        shift = compact(change.apply(x.whole_shift()[None])[0] / divisor, shape)
    return Affine(tuple(resample(t) for t in x.terms), shift, shape)


def through(term: Term, node: Resample) -> list[Term]:
    """A convolution of a map of places as terms on the map's source: the weights of each place of the kernel, then the map.

    Sums of weights and counts are smaller before a map, whose weights are large if it enlarges by an odd ratio.
    """
    synapse = term.synapse
    assert synapse is not None
    size = node.map.places
    kernel = (int(synapse.weight.shape[2]), int(synapse.weight.shape[3]))
    out = window_places(size, kernel, synapse.stride, synapse.padding, synapse.dilation)
    terms = []
    for place in product(range(kernel[0]), range(kernel[1])):
        axes = []
        for n, m, k, s, p, d in zip(size, out, place, synapse.stride, synapse.padding, synapse.dilation, strict=True):
            at = torch.arange(m) * s - p + k * d
            axes.append(AxisMap.choosing(torch.where((at >= 0) & (at < n), at, -1), n))
        change = PlaneMap(*axes).after(node.map)
        after = change if term.after is None else term.after.after(change)
        weight = synapse.weight[:, :, place[0] : place[0] + 1, place[1] : place[1] + 1]
        alone = replace(synapse, weight=weight, stride=(1, 1), padding=(0, 0), dilation=(1, 1))
        terms.append(replace(term, value=node.source, synapse=alone, after=after))
    return terms


def _widened(synapse: Synapse, kernel: Pair, stride: Pair) -> Synapse:
    """Convolution and then window sums, as one convolution."""
    (sy, sx), (dy, dx) = synapse.stride, synapse.dilation
    kh, kw = synapse.weight.shape[2:]
    height, width = (kernel[0] - 1) * sy + (kh - 1) * dy + 1, (kernel[1] - 1) * sx + (kw - 1) * dx + 1
    weight = synapse.weight.new_zeros(*synapse.weight.shape[:2], height, width)
    for y in range(kernel[0]):
        for x in range(kernel[1]):
            weight[..., y * sy : y * sy + (kh - 1) * dy + 1 : dy, x * sx : x * sx + (kw - 1) * dx + 1 : dx] += synapse.weight
    return replace(synapse, weight=weight, stride=(sy * stride[0], sx * stride[1]), dilation=(1, 1))


def flattened(x: Affine, values: ValueTable) -> Affine:
    """[C, H, W] → [C·H·W]."""
    places = prod(x.shape[1:])

    def flatten(term: Term) -> Term:
        gain = term.gain.repeat_interleave(places)
        if term.synapse is not None:
            assert places == 1  # otherwise it is an `arrangement`
            return replace(term, gain=gain)
        inside = torch.arange(places).repeat(x.channels)
        take = term.take.repeat_interleave(places)
        return replace(
            term, gain=gain, value=values.flatten(term.value), take=torch.where(take < 0, -1, take * places + inside)
        )

    return Affine(tuple(flatten(t) for t in x.terms), x.whole_shift().flatten(), (x.channels * places,))
