"""Accurate sums of any length that are the same in any order: on any device, for any memory format and number of threads.

A float32 sum of 10^8 values can be wrong by a percent, by a different amount on each machine. Here blocks are summed and added
in float64: the rounding error is about 10^-14, so the result, rounded to float32, is the same everywhere.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from nbsnn import fused

# Numbers in a block: on a CPU a block stays in the cache; on other devices a kernel launch costs more than memory.
_MOMENT_BLOCK = {"cpu": 2**17}
_DOT_BLOCK = {"cpu": 2**18}
_BLOCK_ELSEWHERE = 2**22


class Moments(NamedTuple):
    """Number of values, their mean, and the sum of their squared deviations from it; scalars, float64."""

    entries: int
    mean: Tensor
    squares: Tensor

    @property
    def deviation(self) -> Tensor:
        """Standard deviation, with Bessel's correction."""
        return (self.squares / max(self.entries - 1, 1)).sqrt()

    @property
    def root_mean_square(self) -> Tensor:
        """√(mean of the squares)."""
        return (self.squares / self.entries + self.mean.square()).sqrt()


@torch.no_grad()
def moments(t: Tensor) -> Moments:
    """The moments of all entries of a tensor, each to 10^-8 or better; at least one entry."""
    known = fused.mean_and_squares(t)
    if known is not None:
        return Moments(t.numel(), *known)
    # One value is subtracted from all: a common offset would cost digits in the difference of squares.
    if torch.compiler.is_compiling():  # one fused pass, without copies in float64
        first = t[(0,) * t.dim()].double()
        x = t.double() - first
        total, squares = x.sum(), x.square().sum()
    else:
        flat = in_storage_order(t)
        size = _MOMENT_BLOCK.get(t.device.type, _BLOCK_ELSEWHERE)
        if flat.numel() <= size:
            variance, mean = torch.var_mean(flat.double(), correction=0)
            return Moments(flat.numel(), mean, variance * flat.numel())
        first = flat[0].double()
        buffer = torch.empty(size, dtype=torch.float64, device=t.device)
        totals, all_squares = [], []
        for block in torch.split(flat, size):
            x = buffer[: block.numel()].copy_(block).sub_(first)
            totals.append(x.sum())
            all_squares.append(torch.dot(x, x))
        total, squares = _added(totals), _added(all_squares)
    shift = total / t.numel()
    return Moments(t.numel(), first + shift, (squares - total * shift).clamp_min(0))


def _added(parts: list[Tensor]) -> Tensor:
    """The sum of some scalars, float64."""
    return parts[0].double() if len(parts) == 1 else torch.stack(parts).sum(dtype=torch.float64)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a·b of two tensors of one shape, scalar float64; each is read once if their memory layouts agree."""
    if torch.compiler.is_compiling():
        return (a.double() * b.double()).sum()
    known = fused.sum_of_products(a, b)
    if known is not None:
        return known
    if a.stride() != b.stride() or a.dtype != b.dtype or not is_dense(a):
        return total(_at_least_float32(a) * _at_least_float32(b))
    x, y = _at_least_float32(in_storage_order(a)), _at_least_float32(in_storage_order(b))
    size = _DOT_BLOCK.get(a.device.type, _BLOCK_ELSEWHERE)
    # Pairwise, not by torch.dot: BLAS adds in sequence, and is off by 10^-4 where 2^18 products are alike.
    if x.numel() <= size:
        return total(x * y)
    buffer = x.new_empty(size)
    pairs = zip(torch.split(x, size), torch.split(y, size), strict=True)
    return _added([torch.mul(part, other, out=buffer[: part.numel()]).sum() for part, other in pairs])


def total(t: Tensor) -> Tensor:
    """Σ t, scalar float64."""
    if torch.compiler.is_compiling():
        return t.double().sum()
    return _at_least_float32(t).sum().double()  # eager sums are pairwise


def channel_sums(x: Tensor) -> Tensor:
    """Number, sum and sum of squares of the values of each channel of a tensor [B, C, ...]: [3, C] float64."""
    others = [axis for axis in range(x.dim()) if axis != 1]
    result = torch.zeros(3, x.shape[1], dtype=torch.float64, device=x.device)
    result[0] = x.numel() // x.shape[1]
    size = _MOMENT_BLOCK.get(x.device.type, _BLOCK_ELSEWHERE)
    for part in torch.split(x.detach(), max(1, size * len(x) // max(x.numel(), 1))):
        values = part.double()
        result[1] += values.sum(others)
        result[2] += values.square().sum(others)  # not in place: `values` of float64 are the input itself
    return result


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all entries of some tensors on one device together, scalar float64."""
    return _added([torch.linalg.vector_norm(t, dtype=torch.float64).square() for t in tensors]).sqrt()


def is_dense(t: Tensor) -> bool:
    """Whether `in_storage_order` is a view."""
    return t.is_contiguous() or (t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last))


def in_storage_order(t: Tensor) -> Tensor:
    """All entries as one axis: a view in storage order of a contiguous or channels-last tensor, else a copy."""
    if t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last):
        t = t.permute(0, 2, 3, 1)
    return t.reshape(-1)


def _at_least_float32(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t
