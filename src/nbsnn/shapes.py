"""Shapes shared by all kinds of layers."""

from collections.abc import Iterable

from torch import Tensor


def per_channel(values: Tensor, trailing: int) -> Tensor:
    """[C] → [C, 1, ..., 1] with so many trailing axes, to broadcast over images [B, C, ...] or a weight [C, ...]."""
    return values.view(-1, *[1] * trailing)


def plane(shape: Iterable[int]) -> tuple[int, ...]:
    """(C, H, W) of values of this shape: lines (C, L) are planes (C, 1, L), and a row (C,) is planes of one place."""
    channels, *sides = shape
    return channels, *(1 for _ in range(2 - len(sides))), *sides


def window_places(
    size: Iterable[int],
    kernel: Iterable[int],
    stride: Iterable[int],
    padding: Iterable[int],
    dilation: Iterable[int] = (1, 1),
) -> tuple[int, ...]:
    """The output size of a convolution or a pool along each axis; less than 1 if the window does not fit."""
    sides = zip(size, kernel, stride, padding, dilation, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
