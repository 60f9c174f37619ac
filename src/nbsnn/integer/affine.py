"""The affine function between two activations, symbolically: sums of synapses on earlier values, each with a gain per channel.

The algebra is closed under the allowed operations: convolution of plain values, products and sums with constants per channel,
    addition, concatenation, selection of channels, average pooling, flattening. Everything is in float64; rounding to integers
    comes later.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nbsnn.integer.nodes import Flatten, Pair, SumPool
from nbsnn.shapes import per_channel, window_places


class NoForm(Exception):
    """An operation has no integer form; args: the problem, the remedy. The tracer adds the layer."""


@dataclass(frozen=True, eq=False)
class Synapse:
    """A convolution's weight [O, I/groups, kh, kw] or a linear layer's [O, I], float64, in its source's own channels.

    `integral` weights are integers (the step is in the term's gain); others are rounded when the network is lowered.
    """

    layer: str
    weight: Tensor
    integral: bool
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def dense(self) -> "Synapse":
        """The same synapse without groups: zeros between unconnected channels."""
        if self.groups == 1:
            return self
        rows, per_group = self.weight.shape[:2]
        out = self.weight.new_zeros(rows, per_group * self.groups, *self.weight.shape[2:])
        for group, chunk in enumerate(self.weight.chunk(self.groups)):
            size = len(chunk)
            out[group * size : (group + 1) * size, group * per_group : (group + 1) * per_group] = chunk
        return replace(self, weight=out, groups=1)


@dataclass(frozen=True, eq=False)
class Term:
    """gain [C] times a synapse on a value, or, without synapse, times the value's channel `take[c]` (−1: nothing)."""

    value: str
    gain: Tensor
    take: Tensor | None = None
    synapse: Synapse | None = None


@dataclass(frozen=True, eq=False)
class Affine:
    """Σ terms + shift [C], of shape (C, H, W) or (C,)."""

    terms: tuple[Term, ...]
    shift: Tensor
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.shape[0]


@dataclass
class ValueTable:
    """Shapes of all values so far, and the pools and flattenings in use, each made once."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    nodes: list[SumPool | Flatten] = field(default_factory=list)
    _known: dict[tuple[object, ...], str] = field(default_factory=dict)

    def pool(self, source: str, kernel: Pair, stride: Pair, padding: Pair) -> str:
        """The value of window sums of `source`."""
        channels, *size = self.shapes[source]
        out = window_places(size, kernel, stride, padding)
        name = f"{source}/sum{kernel[0]}x{kernel[1]}"
        return self._make((SumPool, source, kernel, stride, padding), name,
                          lambda n: SumPool(n, source, kernel, stride, padding, (channels, *out)))  # fmt: skip

    def flatten(self, source: str) -> str:
        """The value of `source`, flattened."""
        shape = (int(torch.Size(self.shapes[source]).numel()),)
        return self._make((Flatten, source), f"{source}/flat", lambda n: Flatten(n, source, shape))

    def _make(self, key: tuple[object, ...], name: str, build: Callable[[str], SumPool | Flatten]) -> str:
        if key not in self._known:
            while name in self.shapes:
                name += "'"
            node = build(name)
            self._known[key], self.shapes[name] = name, node.shape
            self.nodes.append(node)
        return self._known[key]


def of_value(value: str, shape: Sequence[int], gain: float) -> Affine:
    """A value times a gain."""
    channels = shape[0]
    term = Term(value, torch.full((channels,), gain, dtype=torch.float64), torch.arange(channels))
    return Affine((term,), torch.zeros(channels, dtype=torch.float64), tuple(shape))


def scaled(x: Affine, factor: Tensor) -> Affine:
    """x · factor, a factor per channel."""
    return replace(x, terms=tuple(replace(t, gain=t.gain * factor) for t in x.terms), shift=x.shift * factor)


def shifted(x: Affine, shift: Tensor) -> Affine:
    """x + shift, a shift per channel."""
    return replace(x, shift=x.shift + shift)


def added(x: Affine, y: Affine) -> Affine:
    """x + y of one shape."""
    if x.shape != y.shape:
        raise NoForm(f"currents of shapes {list(x.shape)} and {list(y.shape)} are added", "add currents of one shape")
    return replace(x, terms=x.terms + y.terms, shift=x.shift + y.shift)


def selected(x: Affine, index: Tensor) -> Affine:
    """The channels `index` of x, −1 giving zeros."""
    present = index >= 0
    clipped = index.clamp_min(0)

    def choose(term: Term) -> Term:
        gain = torch.where(present, term.gain[clipped], 0.0)
        if term.take is not None:
            return replace(term, gain=gain, take=torch.where(present, term.take[clipped], -1))
        assert term.synapse is not None
        synapse = term.synapse.dense()
        weight = synapse.weight[clipped] * per_channel(present, synapse.weight.dim() - 1)
        return replace(term, gain=gain, synapse=replace(synapse, weight=weight))

    if torch.equal(index, torch.arange(x.channels)):
        return x
    shift = torch.where(present, x.shift[clipped], 0.0)
    return Affine(tuple(choose(t) for t in x.terms), shift, (len(index), *x.shape[1:]))


def concatenated(parts: Iterable[Affine]) -> Affine:
    """Concatenation along the channel axis."""
    parts = list(parts)
    total, start = sum(p.channels for p in parts), 0
    placed = []
    for part in parts:
        index = torch.full((total,), -1)
        index[start : start + part.channels] = torch.arange(part.channels)
        placed.append(selected(part, index))
        start += part.channels
    result = placed[0]
    for part in placed[1:]:
        result = added(result, part)
    return result


def pooled(x: Affine, values: ValueTable, *, kernel: Pair, stride: Pair, padding: Pair, divisor: float) -> Affine:
    """Window sums over `divisor`. After a synapse the window is folded into its weight."""
    window = kernel[0] * kernel[1]
    if len(x.shape) != 3:
        raise NoForm(f"a window over currents of shape {list(x.shape)}", "give images [B, C, 1, L] to layers for planes")
    if any(padding) and bool(x.shift.any()):
        raise NoForm("a padded average of a shifted current differs at the border", "pool without padding, or before the shift")

    def pool(term: Term) -> Term:
        gain = term.gain / divisor
        if term.synapse is not None:
            if any(padding):
                raise NoForm("an average with padding follows a convolution", "pool without padding, or before the convolution")
            return replace(term, gain=gain, synapse=_widened(term.synapse, kernel, stride))
        return replace(term, gain=gain, value=values.pool(term.value, kernel, stride, padding))

    size = window_places(x.shape[1:], kernel, stride, padding)
    return Affine(tuple(pool(t) for t in x.terms), x.shift * (window / divisor), (x.channels, *size))


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
    places = int(torch.Size(x.shape[1:]).numel())

    def flatten(term: Term) -> Term:
        gain = term.gain.repeat_interleave(places)
        if term.take is None:
            if places > 1:
                raise NoForm("the current of a convolution is flattened", "put an nn.ReLU between, or pool to one place first")
            return replace(term, gain=gain)
        inside = torch.arange(places).repeat(x.channels)
        take = term.take.repeat_interleave(places)
        return replace(
            term, gain=gain, value=values.flatten(term.value), take=torch.where(take < 0, -1, take * places + inside)
        )

    return Affine(tuple(flatten(t) for t in x.terms), x.shift.repeat_interleave(places), (x.channels * places,))


def convolved(x: Affine, synapse: Synapse, *, step: Tensor, shape: tuple[int, ...], values: ValueTable) -> Affine:
    """A weight layer on x. `synapse` is in x's channels, `step` [O] the value of 1 in each row of its weight."""
    shift = x.shift.new_zeros(len(synapse.weight))
    if bool(x.shift.any()):
        if any(synapse.padding):
            raise NoForm(
                "a shifted current enters a convolution with padding, where the border differs",
                "put batch norm and biases after the convolution",
            )
        dense = synapse.dense().weight
        shift = step.view(-1, 1) * (dense.flatten(2).sum(2) if dense.dim() > 2 else dense) @ x.shift
    terms = []
    for term in x.terms:
        if term.take is None:
            raise NoForm("one weight layer follows another", "put an nn.ReLU between them, or merge them")
        moved, gain = _in_source_channels(synapse, term, values.shapes[term.value][0])
        terms.append(Term(term.value, step * gain, synapse=moved))
    return Affine(tuple(terms), shift, shape)


def _in_source_channels(synapse: Synapse, term: Term, channels: int) -> tuple[Synapse, float]:
    """The synapse with the source's channels as input, and the gain that all of them share."""
    assert term.take is not None
    used = term.take >= 0
    gain = term.gain[used]
    common = float(gain[0]) if len(gain) and bool((gain == gain[0]).all()) else None
    in_place = torch.equal(term.take, torch.arange(channels))
    if in_place and common is not None:
        return synapse, common
    dense = synapse.dense()
    weight = dense.weight[:, used]
    if common is None:  # then the weight is no longer integer
        weight = weight * per_channel(gain, weight.dim() - 2)
    out = dense.weight.new_zeros(len(weight), channels, *weight.shape[2:]).index_add_(1, term.take[used], weight)
    return replace(dense, weight=out, integral=dense.integral and common is not None), 1.0 if common is None else common
