"""Tables of a branch: convolutions, products, pools and identities as weight rows at lists of input positions.

A kernel that adds weight rows needs, for each tap (kernel element) and each output position, the positions of the last unit (or
of the image) that it reads. Stride, padding, dilation, pooling, resampling and flattening of the source, and a map of the
result, only change these lists. Where a position counts more than once, there are more taps, with multiples of the weights.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbsnn.integer.affine import Synapse
from nbsnn.integer.frozen import thawed
from nbsnn.integer.maps import Index
from nbsnn.integer.nodes import IMAGE, Branch, MaxPool, Resample, SumPool, Unit
from nbsnn.integer.program import Program
from nbsnn.shapes import plane, window_places

LARGEST_ROW_WEIGHT = 31  # the kernel adds rows in int8, at least four before they can overflow
_BASE = 16
_LARGEST_WEIGHT = 2**15 - 1  # the kernel holds weights as int16
_FEW = 8  # so many different multiples of weights get taps of their own


class KernelBranch(NamedTuple):
    """A branch, prepared for the kernel.

    Attributes:
        inputs: channels of the unit (or image) that it reads.
        groups: channel groups; an identity has as many groups as channels, with weights of 1.
        taps: weight rows per input channel.
        start: [taps · positions + 1] uint32, and origin: uint32. Input positions of (tap, output position) are
            origin[start[i] : start[i + 1]], i = tap · positions + position; one may be there several times.
        weight: [taps, inputs, outputs per group] int16.
        multiplier, shift: the branch's.
    """

    inputs: int
    groups: int
    taps: int
    start: NDArray[np.uint32]
    origin: NDArray[np.uint32]
    weight: NDArray[np.int16]
    multiplier: Tensor
    shift: int


class Reads(NamedTuple):
    """What each position sums over: input positions and their factors, [..., reads]; −1 and 0 for nothing."""

    position: Index
    factor: Index

    def at(self, index: Index, factor: Index) -> "Reads":
        """What sums over these positions, [..., K], of a value with these reads, [P, R], read: [..., K · R]."""
        there = index >= 0
        inner = np.where(there[..., None], self.position[index], -1)
        product = np.where(there[..., None], factor[..., None] * self.factor[index], 0)
        return Reads(inner.reshape(*index.shape[:-1], -1), product.reshape(*index.shape[:-1], -1))


def base_of(program: Program, value: str) -> str:
    """The unit, the max pool or the image that a value is a linear map of."""
    while value != IMAGE and not isinstance(node := program.by_name[value], (Unit, MaxPool)):
        value = node.source
    return value


def kernel_branch_of(program: Program, branch: Branch, shape: tuple[int, ...]) -> KernelBranch:
    """The table of a branch into a node of this shape."""
    inputs = program.shapes[base_of(program, branch.source)][0]
    value_shape, reads = _reads(program, branch.source)
    flat = len(program.shapes[branch.source]) == 1 and len(value_shape) > 1
    positions = len(reads.position)
    weight: Tensor | None = thawed(branch.weight)
    if weight is None and flat and positions > 1:
        weight = torch.eye(shape[0], dtype=torch.int8)
    if weight is None:
        taps = np.arange(positions)[None]
        rows, groups = np.ones((1, inputs, 1), np.int16), inputs
    elif flat and weight.dim() == 4:  # planes of one place, whose channels are all positions of the value
        hits = _windows((1, 1), tuple(weight.shape[2:]), branch.stride, branch.padding, branch.dilation)
        taps = np.where(hits[:, None] >= 0, np.arange(positions)[:, None], -1).reshape(-1, hits.shape[1])
        dense = Synapse("", weight, True, groups=branch.groups).dense().weight
        ordered = dense.reshape(len(weight), inputs, positions, -1).permute(3, 2, 1, 0).reshape(len(taps), inputs, -1)
        rows, groups = ordered.to(torch.int16).numpy(), 1
    elif weight.dim() == 2:  # every position of the value is a tap of one output position
        taps = np.arange(positions)[:, None]
        rows, groups = weight.reshape(len(weight), inputs, positions).permute(2, 1, 0).to(torch.int16).numpy(), 1
    else:
        taps = _windows(plane(value_shape)[1:], tuple(weight.shape[2:]), branch.stride, branch.padding, branch.dilation)
        rows, groups = _grouped(weight, branch.groups), branch.groups
    table = reads.at(taps[..., None], np.ones((*taps.shape, 1), np.int64))  # [taps, positions, reads]
    if branch.after is not None:
        index, factor = branch.after.table()
        parts = [Reads(*tap).at(index, factor) for tap in zip(*table, strict=True)]
        table = Reads(np.stack([part.position for part in parts]), np.stack([part.factor for part in parts]))
    start, origin, rows = _expanded(table, rows)
    return KernelBranch(inputs, groups, len(rows), start, origin, rows, thawed(branch.multiplier), branch.shift)


def _expanded(table: Reads, rows: "NDArray[Any]") -> "tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.int16]]":
    """Start and origin of `KernelBranch`, and its rows: each row of weights times each unit that factors are made of."""
    units = _units(table.factor, _largest(rows))
    times, rest = [], table.factor
    for unit in units:
        times.append(np.maximum(rest // unit if unit > 0 else (-rest) // -unit, 0))
        rest = rest - times[-1] * unit
    counts = np.stack(times)  # [units, taps, positions, reads]
    start = np.concatenate([[0], np.cumsum(counts.sum(-1).ravel())]).astype(np.uint32)
    origin = np.repeat(np.broadcast_to(table.position, counts.shape).ravel(), counts.ravel()).astype(np.uint32)
    wider = np.concatenate([rows.astype(np.int32) * unit for unit in units])
    return start, np.ascontiguousarray(origin), np.ascontiguousarray(wider, dtype=np.int16)


def _units(factors: Index, largest: int) -> list[int]:
    """Units of each sign in falling order, of which a factor takes each as often as it fits: 1 is one if need be."""
    units = []
    for sign in (1, -1):
        present = np.unique(sign * factors)
        present = present[present > 0]
        if not len(present):
            continue
        powers = [4**i for i in range(16) if 4**i <= present[-1]]
        chosen = {1} & set(present.tolist()) | set(present.tolist() if len(present) <= _FEW else powers)
        fitting = {unit for unit in chosen if unit * largest <= _LARGEST_WEIGHT}
        if fitting != set(present.tolist()):
            fitting |= {1}
        units += [sign * unit for unit in sorted(fitting, reverse=True)]
    return units or [1]


def windows_of(program: Program, node: MaxPool) -> "tuple[NDArray[np.uint32], NDArray[np.uint32]]":
    """Start [positions + 1] and origin, as in `KernelBranch`: the positions of the base that each window compares.

    A window without any has the value 0: it has nothing but 0 of a padding to choose from, or it is a minimum that meets one.
    """
    (_, reads), windows = _reads(program, node.source), node.map.windows()
    places = reads.position[:, 0].astype(np.int32)  # a source that chooses reads one place, or nothing
    chosen = np.where(windows >= 0, places[windows], np.int32(-1))
    padded = ((windows >= 0) & (chosen < 0)).any(1, keepdims=True)
    there = (chosen >= 0) & ~(padded & node.lowest)
    start = np.concatenate([[0], np.cumsum(there.sum(1))]).astype(np.uint32)
    return start, np.ascontiguousarray(chosen[there], dtype=np.uint32)


def digits_of(branch: KernelBranch) -> list[KernelBranch]:
    """A branch of a unit as several of the same form with small weights, Σ 16^i · digit = weight; itself if they are small.

    So weights of 8 or 16 bits are computed like low-bit ones, as two to four branches whose multipliers grow by a factor of 16.
    The multipliers may overflow the kernel's integers: it adds currents modulo 2^32 or 2^64, and the final sum fits.
    """
    if branch.groups > 1 or _largest(branch.weight) <= LARGEST_ROW_WEIGHT:
        return [branch]
    rest, parts, multiplier = branch.weight.astype(np.int32), [], branch.multiplier.to(torch.int64)
    while _largest(rest) > LARGEST_ROW_WEIGHT:
        digit = (rest + _BASE // 2) % _BASE - _BASE // 2
        parts.append(branch._replace(weight=np.ascontiguousarray(digit, np.int16), multiplier=multiplier))
        rest, multiplier = (rest - digit) // _BASE, multiplier * _BASE
    parts.append(branch._replace(weight=np.ascontiguousarray(rest, np.int16), multiplier=multiplier))
    return parts


def _largest(weight: "NDArray[Any]") -> int:
    return max(int(weight.max()), -int(weight.min()))


def _grouped(weight: Tensor, groups: int) -> "NDArray[Any]":
    """[O, I/groups, kh, kw] → [kh · kw, I, O/groups]."""
    outputs, inputs, height, width = weight.shape
    parts = weight.to(torch.int16).reshape(groups, outputs // groups, inputs, height, width)
    return parts.permute(3, 4, 0, 2, 1).reshape(height * width, groups * inputs, outputs // groups).numpy()


def _reads(program: Program, value: str) -> tuple[tuple[int, ...], Reads]:
    """Shape before any flattening, and what each position of the value sums over."""
    node = program.by_name.get(value)
    if node is None or isinstance(node, (Unit, MaxPool)):
        shape = program.shapes[value]
        index = np.arange(int(np.prod(shape[1:], dtype=np.int64)))[:, None]
        return shape, Reads(index, np.ones_like(index))
    shape, reads = _reads(program, node.source)
    if isinstance(node, SumPool):
        windows = _windows(plane(shape)[1:], node.kernel, node.stride, node.padding, (1, 1)).T  # [positions, taps]
        return node.shape, reads.at(windows, np.ones_like(windows))
    if isinstance(node, Resample):
        return node.shape, reads.at(*node.map.table())
    return shape, reads


def _windows(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> Index:
    """[taps, output positions]: the input position under each tap, −1 in the padding."""
    axes = []
    for extent, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        (outputs,) = window_places([extent], [k], [s], [p], [d])
        at = np.arange(outputs)[None] * s - p + np.arange(k)[:, None] * d
        axes.append(np.where((at >= 0) & (at < extent), at, -1))
    rows, columns = axes
    table = np.where(
        (rows >= 0)[:, None, :, None] & (columns >= 0)[None, :, None, :],
        rows[:, None, :, None] * size[1] + columns[None, :, None, :],
        -1,
    )
    return table.reshape(kernel[0] * kernel[1], -1)
