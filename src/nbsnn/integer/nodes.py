"""What an integer network is made of: units on branches, maps of places, heads, and the grid of the pixels.

`nbsnn.integer.program` says what they compute. Tensors are copied when they come in, and a write to one is refused.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from nbsnn.integer.frozen import freeze_fields, thawed
from nbsnn.integer.maps import PlaneMap
from nbsnn.shapes import per_channel, plane

IMAGE = "image"  # the value id of the image: fixed-point pixels, constant in time
Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Branch:
    """One synapse of a unit or of the head: an integer convolution (or product, or nothing) and a multiplier per channel.

    Attributes:
        source: value id of the input.
        multiplier: [O]; int32 in a unit (int64 if the unit is wide or the source constant), float64 in the head. Never
            negative where there is a weight: signs are in the weight.
        weight: int8 or int16, contiguous: [O, I/groups, kh, kw] on a source [I, H, W] (lines [I, L] are read as [I, 1, L]);
            [O, I] on a source [I]; None for the identity, acc = source.
        shift: bits that the product with a constant source is rounded off by, half up; 0 for all other branches.
        after: a map of the places of the convolution's result, which gives acc; None for none.
        layer: name of the weight layer that it comes from, such as "stage1.0.first.conv"; empty for skips, and in files of
            earlier versions.
    """

    source: str
    multiplier: Tensor
    weight: Tensor | None = None
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    shift: int = 0
    after: PlaneMap | None = None
    layer: str = ""

    def __post_init__(self) -> None:
        freeze_fields(self)


@dataclass(frozen=True, eq=False)
class Unit:
    """Neurons that share a threshold: synapses, then integrate-and-fire (or the count that it comes to).

    Attributes:
        name: of the activation layer, such as "stage1.0.first.act"; also the id of its value.
        shape: (O, H, W), (O, L) for neurons on a line, or (O,) for neurons without place.
        branches: at least one.
        bias: [O], or [*shape] if it differs from place to place; int32 (int64 if wide), added in each of the first T steps.
        fraction_bits: F; the membrane's unit is 2^−F of the height, so that the firing threshold is 2^F.
        levels: L = 2^b − 1, the largest count: the cap of "settle" and "barrier" and of the counts.
        height: what one spike stands for, θ·T/L, as a float.
        retract: a signed neuron under "fixed" takes a spike back at this membrane or below: ⌊−10⁻³·2^F/height⌋.
        bound: the largest magnitude that the membrane or a sum on the way can reach; below 2^31, or 2^52 if wide.
        wide: arithmetic in int64 instead of int32.
    """

    name: str
    shape: tuple[int, ...]
    branches: tuple[Branch, ...]
    bias: Tensor
    fraction_bits: int
    levels: int
    height: float
    retract: int
    bound: int
    wide: bool = False

    def __post_init__(self) -> None:
        freeze_fields(self)

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(branch.source for branch in self.branches)

    @property
    def threshold(self) -> int:
        """2^F: a neuron fires when its membrane reaches it, and a spike subtracts it."""
        return 1 << self.fraction_bits


@dataclass(frozen=True, eq=False)
class SumPool:
    """Sums over windows, [C, H, W] → [C, H', W']; the division is in the next multiplier. Padding is with zeros."""

    name: str
    source: str
    kernel: Pair
    stride: Pair
    padding: Pair
    shape: tuple[int, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def apply(self, x: Tensor) -> Tensor:
        """[B, *shape] of x [B, C, H, W] or [B, C, L], of a floating type that holds the sums exactly."""
        planes = x.reshape(len(x), *plane(x.shape[1:]))
        return F.avg_pool2d(planes, self.kernel, self.stride, self.padding, divisor_override=1).reshape(-1, *self.shape)


@dataclass(frozen=True, eq=False)
class Resample:
    """A map of places, the same for all channels, [C, H, W] → [C, H', W']."""

    name: str
    source: str
    map: PlaneMap
    shape: tuple[int, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def apply(self, x: Tensor) -> Tensor:
        """[B, *shape] of x's type, which must hold the sums."""
        return self.map.apply(x).reshape(-1, *self.shape)


@dataclass(frozen=True, eq=False)
class MaxPool:
    """The maximum, or the minimum, of neurons' counts over windows, [C, H, W] → [C, H', W'].

    In time its value is the difference of that: with m_t the maximum of the net counts after step t, it is m_t − m_{t−1}, which
    is −1, 0 or 1 like a spike. The source holds counts of single neurons: a unit, another max pool, or chosen places of these.

    Attributes:
        map: the places of each window, with weights of 1. Each window has at least one.
        lowest: the minimum.
    """

    name: str
    source: str
    map: PlaneMap
    lowest: bool
    shape: tuple[int, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def apply(self, counts: Tensor) -> Tensor:
        """[B, *shape] of counts [B, C, H, W] of any type."""
        return self.map.extreme(counts, lowest=self.lowest).reshape(-1, *self.shape)


@dataclass(frozen=True, eq=False)
class Flatten:
    """[C, H, W] → [C·H·W], channel first."""

    name: str
    source: str
    shape: tuple[int, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    def apply(self, x: Tensor) -> Tensor:
        """[B, C, H, W] of any type."""
        return x.flatten(1)


@dataclass(frozen=True, eq=False)
class Head:
    """An output of the network. Its accumulators sum the branches' acc over all steps taken, as integers; then, once,

    numbers = bias + Σ_branches accumulator · multiplier, in float64 and in this order.

    A constant branch's accumulator is its acc, taken once. `shape` is (O,), or (O, L) or (O, H, W) if there are places. The
    bias is [O] or [*shape].
    """

    name: ClassVar[str] = "head"
    shape: tuple[int, ...]
    branches: tuple[Branch, ...]
    bias: Tensor

    def __post_init__(self) -> None:
        freeze_fields(self)

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(branch.source for branch in self.branches)

    @cached_property
    def _numbers(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The bias and the branches' multipliers, in float64, to broadcast over [B, *shape]."""
        trailing = len(self.shape) - 1
        return placed(self.bias, self.shape), tuple(per_channel(thawed(b.multiplier), trailing) for b in self.branches)

    def numbers(self, accumulators: "tuple[Tensor, ...] | list[Tensor]") -> Tensor:
        """[B, O, ...] float64 from one [B, O, ...] integer accumulator per branch."""
        total, factors = self._numbers
        # Products and sums one after the other: a fused multiply-add would round differently.
        for factor, accumulator in zip(factors, accumulators, strict=True):
            total = total + accumulator * factor
        whole = (len(accumulators[0]), *self.shape)
        return total if total.shape == whole else total.expand(whole)


def placed(bias: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A bias [O] or [*shape], to broadcast over [B, *shape]."""
    numbers: Tensor = thawed(bias)
    return numbers if numbers.dim() == len(shape) else per_channel(numbers, len(shape) - 1)


Node = Unit | SumPool | Resample | MaxPool | Flatten


@dataclass(frozen=True, eq=False)
class Pixels:
    """How images become integers: value · 2^fraction_bits, zero padding after normalisation being exactly 0.

    Attributes:
        shape: (C, H, W), or (C, L) or (F,) for what has fewer axes.
        low, high: the smallest and largest integer that a pixel may be; the overflow check rests on them.
        table: [C, 256] int32, from 8-bit pixels, or None if the network was lowered without mean and std.
    """

    shape: tuple[int, ...]
    fraction_bits: int
    low: int
    high: int
    table: Tensor | None = None

    def __post_init__(self) -> None:
        freeze_fields(self)
