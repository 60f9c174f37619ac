"""Convolutions as NIR has them: square kernels, one group, the same padding on both sides; and maps of places as such.

NIR computes the output size of a convolution with one side of the kernel for both axes, and the input's channels without the
groups. So a kernel is widened with zeros to a square, and one of several groups becomes one with zeros between the groups.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbsnn.errors import LoweringError
from nbsnn.integer.maps import AxisMap, PlaneMap

MOST_WEIGHTS = 2**27  # of one convolution with its groups written out: 1 GiB
MOST_TAPS = 64  # of a map of places along one axis
Sides = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """One axis of a convolution whose taps are next to each other.

    Attributes:
        taps: [k] weights, or positions of a kernel's side (−1 for zero).
        stride, padding: as in torch.
    """

    taps: tuple[int, ...]
    stride: int
    padding: int

    def widened(self, before: int, after: int, nothing: int) -> "Window":
        """The same with taps of nothing on both sides, and the places that those before need."""
        return Window((nothing,) * before + self.taps + (nothing,) * after, self.stride, self.padding + before)

    def places(self, size: int) -> int:
        """The output size."""
        return (size + 2 * self.padding - len(self.taps)) // self.stride + 1

    def fitted(self, size: int, places: int, side: int, nothing: int) -> "Window | None":
        """Widened to a side so that it still gives so many places; None if that is impossible."""
        for before in range(side - len(self.taps), -1, -1):
            window = self.widened(before, side - len(self.taps) - before, nothing)
            if window.places(size) == places:
                return window
        return None


def fitted_together(windows: list[Window], sizes: Sides, places: Sides, nothing: int) -> list[Window] | None:
    """The windows of all axes with sides of the smallest equal length that gives these places; None if there is none."""
    least = max(len(window.taps) for window in windows)
    for side in range(least, least + max(max(sizes), *places) + 2):
        fitted = [w.fitted(n, p, side, nothing) for w, n, p in zip(windows, sizes, places, strict=True)]
        if all(fitted):
            return [window for window in fitted if window is not None]
    return None


def dilated(length: int, dilation: int) -> tuple[int, ...]:
    """Positions of a kernel's side with dilation, −1 between them."""
    taps = [-1] * ((length - 1) * dilation + 1)
    taps[::dilation] = range(length)
    return tuple(taps)


def window_of(axis: AxisMap) -> Window | None:
    """A map of one axis as a window that moves along it; None if that would be a long one.

    Any map has one: with a stride as large as the source, each place of the result has taps of its own.
    """
    matrix = axis.matrix().numpy()
    used: list[list[int]] = [np.flatnonzero(row).tolist() for row in matrix]
    for stride in range(1, max(axis.size, 1) + 1) if len(matrix) > 1 else (1,):
        offsets = [index - stride * i for i, indices in enumerate(used) for index in indices]
        if not offsets:
            return Window((0,), stride, 0)
        low, high = min(min(offsets), 0), max(offsets)
        if high - low >= MOST_TAPS:
            continue
        taps: list[int | None] = [None] * (max(high, low) - low + 1)
        if all(_agrees(row, stride * i + low, taps) for i, row in enumerate(matrix)):
            return Window(tuple(int(tap or 0) for tap in taps), stride, -low)
    return None


def _agrees(row: NDArray[np.int64], start: int, taps: list[int | None]) -> bool:
    """Whether a row has these weights from a place on, as far as it reaches; unknown ones are learned from it."""
    reach = {start + k: k for k in range(len(taps))}
    if any(value != 0 and place not in reach for place, value in enumerate(row)):
        return False
    for place, k in reach.items():
        if 0 <= place < len(row):
            if taps[k] is None:
                taps[k] = int(row[place])
            elif taps[k] != row[place]:
                return False
    return True


def plane_windows(plane: PlaneMap, name: str) -> tuple[Window, Window]:
    """Rows and columns of a map of places as windows.

    Raises:
        LoweringError: its weights differ from place to place over a large plane.
    """
    rows, columns = window_of(plane.rows), window_of(plane.columns)
    if rows is None or columns is None:
        raise LoweringError(
            f"{name} gives each of many places other weights, and NIR has no node for that; "
            "use a pool or a convolution with a stride instead"
        )
    return rows, columns


def ungrouped(weight: Tensor, groups: int, name: str) -> Tensor:
    """[O, I/groups, ...] → [O, I, ...], with zeros between the groups.

    Raises:
        LoweringError: more weights than a file should hold.
    """
    if groups == 1:
        return weight
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    if weight.numel() * groups > MOST_WEIGHTS:
        raise LoweringError(
            f"{name} has {groups} groups, which NIR cannot express; written out as one it would have "
            f"{weight.numel() * groups:,} weights, more than {MOST_WEIGHTS:,}; use fewer channels or groups"
        )
    dense = weight.new_zeros(weight.shape[0], inputs * groups, *weight.shape[2:])
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        dense[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return dense


def spread(weight: Tensor, windows: list[Window]) -> Tensor:
    """A kernel [O, I, *sides] at the positions of the windows' taps, with zeros where a tap is −1."""
    for axis, window in enumerate(windows, 2):
        index = torch.tensor(window.taps)
        shape = [-1 if a == axis else 1 for a in range(weight.dim())]
        weight = weight.index_select(axis, index.clamp_min(0)) * (index >= 0).to(weight.dtype).view(shape)
    return weight
