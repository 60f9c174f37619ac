"""The quantizers, as pure functions with straight-through gradients.

Weights take additive powers of two (APoT; Li, Dong & Wang, ICLR 2020) after normalisation; the first and the last
layer take a uniform 8-bit grid; activations take 2^b − 1 steps below a learnable threshold. One tensor pass costs about
as much as a ReLU on a CPU, so the passes are counted here: four forward and three backward for an activation.
"""

from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EdgeRange = Literal["max", "max_abs"]

WEIGHT_BITS = (2, 3, 4, 5)

# Each magnitude is a sum of one term of each row, over the largest such sum.
_APOT_TERMS: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((0, 1),),
    3: ((0, 1, 2, 4),),
    4: ((0, 8, 4, 1), (0, 2)),
    5: ((0, 32, 8, 2), (0, 16, 4, 1)),
}


@cache
def apot_numerators(bits: int) -> tuple[int, ...]:
    """Ascending integer magnitudes of b-bit APoT weights; the last one is the common denominator.

    >>> apot_numerators(4)
    (0, 1, 2, 3, 4, 6, 8, 10)
    """
    sums = {0}
    for terms in _APOT_TERMS[bits]:
        sums = {a + b for a in sums for b in terms}
    return tuple(sorted(sums))


def apot_levels(bits: int) -> Tensor:
    """Ascending magnitudes in [0, 1] of b-bit APoT weights, [2^(b-1)] float64."""
    numerators = apot_numerators(bits)
    return torch.tensor(numerators, dtype=torch.float64) / numerators[-1]


def _nearest_level_table(bits: int) -> Tensor:
    """The nearest level for each cell of a grid whose lines include every midpoint between levels.

    With denominator D all midpoints are multiples of 1/(2D), so that cell floor(2D·|x|) decides the level: a look-up
    costs a seventh of torch.bucketize. The cell that starts at a midpoint belongs to the upper level.
    """
    levels = apot_levels(bits)
    cells = 2 * apot_numerators(bits)[-1]
    starts = torch.arange(cells + 1, dtype=torch.float64) / cells
    midpoints = (levels[1:] + levels[:-1]) / 2
    return levels[torch.bucketize(starts + 0.25 / cells, midpoints)]


_NEAREST_LEVEL = {bits: _nearest_level_table(bits) for bits in WEIGHT_BITS}


_LEVEL_STARTS = {
    bits: [(cell, level) for cell, level in enumerate(table.tolist()) if cell and level != table[cell - 1]]
    for bits, table in _NEAREST_LEVEL.items()
}  # the cells where a level begins


@cache
def _nearest_level_on(bits: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The table where it is used: a copy from the host would wait for all that the device has to do."""
    with torch.inference_mode(False):
        return _NEAREST_LEVEL[bits].to(device, dtype)


def _level_of(cell: Tensor, bits: int, like: Tensor) -> Tensor:
    """The level of each cell, in the type and memory format of `like`."""
    if torch.compiler.is_compiling():  # one fused kernel, and no table that a compiled graph would copy to the device
        level = torch.zeros_like(like)
        for start, value in _LEVEL_STARTS[bits]:
            level = torch.where(cell >= start, value, level)
        return level
    level = torch.empty_like(like)
    # In storage order, whatever the memory format.
    torch.index_select(_nearest_level_on(bits, like.dtype, like.device), 0, _flat(cell), out=_flat(level))
    return level


class QuantizedWeight(NamedTuple):
    """A quantized weight with the statistics that its gradient needs again."""

    values: Tensor
    mean: Tensor
    deviation: Tensor


def apot_weight(weight: Tensor, weight_scale: Tensor, *, bits: int) -> QuantizedWeight:
    """The forward half of `quantize_weight`, without gradient."""
    with torch.no_grad():
        mean = weight.mean()
        unit = weight - mean
        unit = unit if _is_dense(unit) else unit.contiguous()
        deviation = torch.linalg.vector_norm(unit) / (max(weight.numel() - 1, 1) ** 0.5)  # Bessel's correction
        deviation = deviation.clamp_min(torch.finfo(weight.dtype).tiny)
        unit.div_(deviation).div_(weight_scale)
        cell = unit.abs().clamp_(max=1).mul_(len(_NEAREST_LEVEL[bits]) - 1).to(torch.int32)
        level = _level_of(cell.clamp_(min=0), bits, unit)  # NaN becomes some whole number
        alive = deviation / deviation  # 1, or NaN where a weight is not finite: it must show in the loss
        return QuantizedWeight(level.copysign_(unit).mul_(weight_scale * alive), mean, deviation)


class _QuantizeWeight(torch.autograd.Function):
    """APoT quantization; mean and deviation count as constants, as does the choice of the level."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, weight_scale: Tensor, values: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        ctx.save_for_backward(weight, weight_scale, values, mean, deviation)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, weight_scale, values, mean, deviation = ctx.saved_tensors
        unit = (weight - mean).div_(deviation * weight_scale)
        inside = torch.ops.aten.hardtanh_backward(grad, unit, -1, 1)
        # d/ds of s·Q(ŵ/s) is Q − ŵ/s inside the clip and ±1 outside, where Q is ±1.
        grad_scale = _dot(grad, values) / weight_scale - _dot(inside, unit)
        return inside.div_(deviation), grad_scale.view(weight_scale.shape), None, None, None


def quantize_weight(weight: Tensor, weight_scale: Tensor, *, bits: int, known: QuantizedWeight | None = None) -> Tensor:
    """APoT quantization of a layer's normalised weight (Li et al., ICLR 2020).

    Args:
        weight: any shape; normalised over all its entries first.
        weight_scale: scalar s > 0, the clip of the normalised weight; learnable.
        bits: 2, 3, 4 or 5.
        known: the result, if the caller has it already: then only the gradient is wired up.
    Returns:
        s · level · sign, of the weight's shape. The gradient passes inside the clip (over the layer's deviation);
        the scale receives the clipped part and the rounding residue.
    """
    known = known or apot_weight(weight.detach(), weight_scale.detach(), bits=bits)
    result: Tensor = _QuantizeWeight.apply(weight, weight_scale, *known)  # type: ignore[no-untyped-call]
    return result


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, values: Tensor) -> Tensor:
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def edge_weight(weight: Tensor, *, bits: int, edge_range: EdgeRange) -> Tensor:
    """The forward half of `quantize_edge_weight`, without gradient."""
    with torch.no_grad():
        step = edge_step(weight, bits=bits, edge_range=edge_range)
        return (weight / step).round_().mul_(step)


def quantize_edge_weight(
    weight: Tensor, *, bits: int = 8, edge_range: EdgeRange = "max_abs", known: Tensor | None = None
) -> Tensor:
    """Uniform quantization of the first and the last layer: round(w/m·127)·m/127 at 8 bits.

    Args:
        weight: any shape.
        bits: width of the signed grid.
        edge_range: m is the largest magnitude ("max_abs"), or the maximum ("max"), which the reference checkpoints use.
        known: as for `quantize_weight`.
    Returns:
        The quantized weight; the gradient passes unchanged.
    """
    values = edge_weight(weight.detach(), bits=bits, edge_range=edge_range) if known is None else known
    result: Tensor = _StraightThrough.apply(weight, values)  # type: ignore[no-untyped-call]
    return result


def edge_step(weight: Tensor, *, bits: int, edge_range: EdgeRange) -> Tensor:
    """The grid's step m / (2^(b-1) − 1) of an edge layer's weight."""
    extreme = weight.max() if edge_range == "max" else weight.abs().max()
    step: Tensor = (extreme / (2 ** (bits - 1) - 1)).clamp_min(torch.finfo(weight.dtype).tiny)
    return step


class _QuantizeActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, levels: int, tolerance: float) -> Tensor:
        # `scaled` is x·L/θ + ½, clipped: it carries the inside/outside mask to the backward pass.
        shift = 0.5 + tolerance
        half = torch.full_like(threshold, shift)
        scaled = torch.addcmul(half, x, levels / threshold).clamp_(shift, levels + shift)
        y = scaled.floor().mul_(threshold / levels)
        ctx.save_for_backward(scaled, threshold, y)
        ctx.levels, ctx.shift = levels, shift
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        scaled, threshold, y = ctx.saved_tensors
        shift, levels = ctx.shift, ctx.levels
        inside = torch.ops.aten.hardtanh_backward(grad, scaled, shift, levels + shift)
        # d/dθ is q/L − x/θ inside and 1 above, where q/L is 1 (PACT with the rounding residue).
        residue = _dot(inside, scaled) - shift * inside.sum()
        grad_threshold = _dot(grad, y) / threshold - residue / levels
        return inside, grad_threshold.view(threshold.shape), None, None


def _flat(t: Tensor) -> Tensor:
    """A view of a dense tensor as one axis, in storage order where that is channels-last."""
    if t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last):
        t = t.permute(0, 2, 3, 1)
    return t.view(-1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a·b in one read-only pass where the memory layouts agree and are dense."""
    same = a.stride() == b.stride() and a.numel() > 0 and _is_dense(a)
    result: Tensor = torch.dot(_flat(a), _flat(b)) if same else (a * b).sum()
    return result


def _is_dense(t: Tensor) -> bool:
    return t.is_contiguous() or (t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last))


def quantize_activation(x: Tensor, threshold: Tensor, *, bits: int, tolerance: float = 0.0) -> Tensor:
    """Uniform quantization of an activation: q·θ/L with q = floor(clamp(x/θ, 0, 1)·L + ½), L = 2^b − 1.

    Args:
        x: any shape, in units of the activation.
        threshold: scalar θ > 0, the clipping level; learnable.
        bits: b, 2 to 8.
        tolerance: added to the ½, in units of a step; the exact schedules' neurons carry the same one, so that exact ties
            agree in floating point.
    Returns:
        The quantized activation. Half rounds up, as an integrate-and-fire neuron charged to θ/2 does. The gradient passes
        inside the clip; the threshold receives the clipped part and the rounding residue.
    """
    result: Tensor = _QuantizeActivation.apply(x, threshold, 2**bits - 1, tolerance)  # type: ignore[no-untyped-call]
    return result
