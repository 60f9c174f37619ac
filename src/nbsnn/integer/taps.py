"""Tables of a branch: convolutions, products, pools and identities as weight rows at lists of input positions.

A kernel that adds weight rows needs, for each tap (kernel element) and each output position, the positions of the last unit (or
of the image) that it reads. Stride, padding, dilation, pooling and flattening of the source only change these lists.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbsnn.integer.frozen import thawed
from nbsnn.integer.nodes import IMAGE, Branch, Flatten, SumPool, Unit
from nbsnn.integer.program import Program
from nbsnn.shapes import window_places

LARGEST_ROW_WEIGHT = 31  # the kernel adds rows in int8, at least four before they can overflow
_BASE = 16

Index = NDArray[np.int64]


class KernelBranch(NamedTuple):
    """A branch, prepared for the kernel.

    Attributes:
        inputs: channels of the unit (or image) that it reads.
        groups: channel groups; an identity has as many groups as channels, with weights of 1.
        taps: weight rows per input channel.
        start: [taps · positions + 1] uint32, and origin: uint32. Input positions of (tap, output position) are
            origin[start[i] : start[i + 1]], i = tap · positions + position; repeated where windows overlap.
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


def base_of(program: Program, value: str) -> str:
    """The unit, or the image, that a value is pooled or flattened from."""
    while value != IMAGE and not isinstance(node := program.by_name[value], Unit):
        value = node.source
    return value


def kernel_branch_of(program: Program, branch: Branch, shape: tuple[int, ...]) -> KernelBranch:
    """The table of a branch into a node of this shape."""
    inputs = program.shapes[base_of(program, branch.source)][0]
    value_shape, reads = _reads(program, branch.source)
    flat = len(program.shapes[branch.source]) == 1 and len(value_shape) == 3
    weight: Tensor | None = thawed(branch.weight)
    if weight is None and flat and value_shape[1:] != (1, 1):
        weight = torch.eye(shape[0], dtype=torch.int8)
    if weight is None:
        taps = np.arange(len(reads))[None]
        rows, groups = np.ones((1, inputs, 1), np.int16), inputs
    elif weight.dim() == 2:  # every position of the value is a tap of one output position
        taps = np.arange(len(reads))[:, None]
        rows, groups = weight.reshape(len(weight), inputs, len(reads)).permute(2, 1, 0).to(torch.int16).numpy(), 1
    else:
        taps = _windows(value_shape[1:], tuple(weight.shape[2:]), branch.stride, branch.padding, branch.dilation)
        rows, groups = _grouped(weight, branch.groups), branch.groups
    table = np.where(taps[..., None] >= 0, reads[taps], -1)  # [taps, positions, reads]
    sizes = (table >= 0).sum(-1).ravel()
    start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32)
    origin = np.ascontiguousarray(table[table >= 0], dtype=np.uint32)
    rows = np.ascontiguousarray(rows, dtype=np.int16)
    return KernelBranch(inputs, groups, len(taps), start, origin, rows, thawed(branch.multiplier), branch.shift)


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


def _reads(program: Program, value: str) -> tuple[tuple[int, ...], Index]:
    """Shape before any flattening, and [positions, reads]: what each position of the value sums over; −1 for none."""
    node = program.by_name.get(value)
    if node is None or isinstance(node, Unit):
        shape = program.shapes[value]
        return shape, np.arange(int(np.prod(shape[1:], dtype=np.int64)))[:, None]
    shape, reads = _reads(program, node.source)
    if isinstance(node, Flatten):
        return shape, reads
    assert isinstance(node, SumPool)
    windows = _windows(shape[1:], node.kernel, node.stride, node.padding, (1, 1)).T  # [positions, taps]
    table = np.where(windows[..., None] >= 0, reads[windows], -1)
    return node.shape, table.reshape(len(table), -1)


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
