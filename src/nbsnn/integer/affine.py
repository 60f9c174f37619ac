"""The affine function between two activations, symbolically: sums of synapses on earlier values, each with a gain per channel.

The algebra is closed under the allowed operations: convolution of plain values, products with constants per channel, sums with
    constants of any shape, addition, concatenation, selection of channels, maps of places (`integer.placing`), flattening.
    Everything is in float64; rounding to integers comes later.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nbsnn.integer.maps import PlaneMap
from nbsnn.integer.nodes import Flatten, MaxPool, Pair, Resample, SumPool
from nbsnn.shapes import per_channel, plane


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
    """gain [C] times the channel `take[c]` (−1: nothing) of a value, or of a synapse on it.

    `after` maps the places of the synapse's result. Terms share their synapses: a choice of channels copies no weights.
    """

    value: str
    gain: Tensor
    take: Tensor
    synapse: Synapse | None = None
    after: PlaneMap | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all channels of the synapse's result are taken, in their order."""
        assert self.synapse is not None
        return torch.equal(self.take, torch.arange(len(self.synapse.weight)))

    def chosen(self) -> Synapse:
        """The synapse with the weights of the channels that are taken; zeros for nothing."""
        assert self.synapse is not None
        if self.is_whole:
            return self.synapse
        synapse = self.synapse.dense()
        weight = synapse.weight[self.take.clamp_min(0)]
        return replace(synapse, weight=weight * per_channel(self.take >= 0, weight.dim() - 1))


@dataclass(frozen=True, eq=False)
class Affine:
    """Σ terms + shift, of shape (C, H, W), (C, L) or (C,); the shift is [C, 1, ...], or of that shape."""

    terms: tuple[Term, ...]
    shift: Tensor
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def is_shifted(self) -> bool:
        return bool(self.shift.any())

    @property
    def bias(self) -> Tensor:
        """The shift as [C], or as [*shape] if it differs from place to place."""
        return self.shift.flatten() if self.shift.numel() == self.channels else self.shift.expand(self.shape).contiguous()

    def whole_shift(self) -> Tensor:
        """The shift of every place, [C, H, W]."""
        return self.shift.expand(self.shape).reshape(plane(self.shape))


@dataclass
class ValueTable:
    """Shapes of all values so far, and the pools and flattenings in use, each made once."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    nodes: list[SumPool | Resample | MaxPool | Flatten] = field(default_factory=list)
    _known: dict[tuple[object, ...], str] = field(default_factory=dict)

    def pool(self, source: str, kernel: Pair, stride: Pair, padding: Pair, places: tuple[int, ...]) -> str:
        """The value of window sums of `source`, of these places."""
        shape = (self.shapes[source][0], *places)
        name = f"{source}/sum{kernel[0]}x{kernel[1]}"
        return self._make((SumPool, source, kernel, stride, padding, places), name,
                          lambda n: SumPool(n, source, kernel, stride, padding, shape))  # fmt: skip

    def resample(self, source: str, change: PlaneMap, shape: tuple[int, ...]) -> str:
        """The value of `source` with its places mapped, of this shape."""
        key = (Resample, source, shape, *_numbers(change))
        return self._make(key, f"{source}/places", lambda n: Resample(n, source, change, shape))

    def maximum(self, source: str, windows: PlaneMap, shape: tuple[int, ...], *, lowest: bool) -> str:
        """The value of the maxima (or minima) of `source` over windows, of this shape."""
        name = f"{source}/{'min' if lowest else 'max'}"
        return self._make((MaxPool, source, lowest, shape, *_numbers(windows)), name,
                          lambda n: MaxPool(n, source, windows, lowest, shape))  # fmt: skip

    def flatten(self, source: str) -> str:
        """The value of `source`, flattened."""
        shape = (int(torch.Size(self.shapes[source]).numel()),)
        return self._make((Flatten, source), f"{source}/flat", lambda n: Flatten(n, source, shape))

    def _make(self, key: tuple[object, ...], name: str, build: Callable[[str], SumPool | Resample | MaxPool | Flatten]) -> str:
        if key not in self._known:
            while name in self.shapes:
                name += "'"
            node = build(name)
            self._known[key], self.shapes[name] = name, node.shape
            self.nodes.append(node)
        return self._known[key]


def _numbers(change: PlaneMap) -> list[bytes]:
    """What two maps have in common if they are the same."""
    return [tensor.numpy().tobytes() for axis in (change.rows, change.columns) for tensor in (axis.index, axis.weight)]


def of_value(value: str, shape: Sequence[int], gain: float) -> Affine:
    """A value times a gain."""
    channels = shape[0]
    term = Term(value, torch.full((channels,), gain, dtype=torch.float64), torch.arange(channels))
    return Affine((term,), torch.zeros(channels, *(1 for _ in shape[1:]), dtype=torch.float64), tuple(shape))


def compact(shift: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A shift [C, H, W] of every place, as an affine function of this shape stores it."""
    shift = shift.reshape(shape)
    first = shift[(slice(None), *(slice(0, 1) for _ in shape[1:]))]
    return first if torch.equal(first.expand(shape), shift) else shift


def scaled(x: Affine, factor: Tensor) -> Affine:
    """x · factor, a factor per channel."""
    return replace(
        x,
        terms=tuple(replace(t, gain=t.gain * factor) for t in x.terms),
        shift=x.shift * per_channel(factor, x.shift.dim() - 1),
    )


def shifted(x: Affine, shift: Tensor) -> Affine:
    """x + shift, [C] per channel or of x's shape."""
    shift = per_channel(shift, len(x.shape) - 1) if shift.dim() == 1 else compact(shift.expand(x.shape), x.shape)
    return replace(x, shift=x.shift + shift)


def added(x: Affine, y: Affine) -> Affine:
    """x + y of one shape."""
    assert x.shape == y.shape
    return replace(x, terms=x.terms + y.terms, shift=x.shift + y.shift)


def selected(x: Affine, index: Tensor) -> Affine:
    """The channels `index` of x, −1 giving zeros."""
    present = index >= 0
    clipped = index.clamp_min(0)

    def choose(term: Term) -> Term:
        gain = torch.where(present, term.gain[clipped], 0.0)
        return replace(term, gain=gain, take=torch.where(present, term.take[clipped], -1))

    if torch.equal(index, torch.arange(x.channels)):
        return x
    shift = torch.where(per_channel(present, x.shift.dim() - 1), x.shift[clipped], 0.0)
    chosen = [choose(term) for term in x.terms]
    # Half of a concatenation may leave nothing of the other half.
    used = [term for term in chosen if bool((term.take >= 0).any())]
    return Affine(tuple(used or chosen[:1]), shift, (len(index), *x.shape[1:]))


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


def convolved(x: Affine, synapse: Synapse, *, step: Tensor, shape: tuple[int, ...], values: ValueTable) -> Affine:
    """A weight layer on x. `synapse` is in x's channels, `step` [O] the value of 1 in each row of its weight."""
    shift = _of_shift(x, synapse, step, shape)
    terms = []
    for term in x.terms:
        if term.synapse is not None:
            raise NoForm("one weight layer follows another", "put an nn.ReLU between them, or merge them")
        moved, gain = _in_source_channels(synapse, term, values.shapes[term.value][0])
        terms.append(Term(term.value, step * gain, torch.arange(len(step)), moved))
    return Affine(tuple(terms), shift, shape)


def _of_shift(x: Affine, synapse: Synapse, step: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What a weight layer makes of x's shift; at a border with padding it differs from place to place."""
    trailing = len(shape) - 1
    if not x.is_shifted:
        return x.shift.new_zeros(len(step), *(1 for _ in range(trailing)))
    if x.shift.numel() == x.channels and not any(synapse.padding):
        dense = synapse.dense().weight
        return per_channel(
            step.view(-1, 1) * (dense.flatten(2).sum(2) if dense.dim() > 2 else dense) @ x.shift.flatten(), trailing
        )
    s = synapse
    whole = F.conv2d(x.whole_shift()[None], s.weight, None, s.stride, s.padding, s.dilation, s.groups)[0]
    return compact(whole * per_channel(step, 2), shape)


def _in_source_channels(synapse: Synapse, term: Term, channels: int) -> tuple[Synapse, float]:
    """The synapse with the source's channels as input, and the gain that all of them share."""
    used = term.take >= 0
    gain = term.gain[used]
    common = float(gain[0]) if len(gain) and bool((gain == gain[0]).all()) else None
    in_place = torch.equal(term.take, torch.arange(channels))
    if in_place:
        return (synapse, common) if common is not None else (_weighted(synapse, gain), 1.0)
    dense = synapse.dense()
    weight = dense.weight[:, used]
    if common is None:  # then the weight is no longer integer
        weight = weight * per_channel(gain, weight.dim() - 2)
    out = dense.weight.new_zeros(len(weight), channels, *weight.shape[2:]).index_add_(1, term.take[used], weight)
    return replace(dense, weight=out, integral=dense.integral and common is not None), 1.0 if common is None else common


def _weighted(synapse: Synapse, gain: Tensor) -> Synapse:
    """A synapse that multiplies each input channel by a gain, with the same groups; its weight is no longer integer."""
    rows, per_group = synapse.weight.shape[:2]
    gains = gain.view(synapse.groups, 1, per_group).expand(-1, rows // synapse.groups, -1)
    gains = gains.reshape(rows, per_group, *(1 for _ in synapse.weight.shape[2:]))
    return replace(synapse, weight=synapse.weight * gains, integral=False)
