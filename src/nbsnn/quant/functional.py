"""The quantizers, as pure functions with straight-through gradients.

Weights are normalized and rounded to additive powers of two (APoT; Li, Dong & Wang, ICLR 2020), or to a uniform grid; the first
and the last layer use a uniform 8-bit grid; activations have 2^b − 1 steps below a learnable threshold. One pass over a tensor
costs about as much as a ReLU on a CPU, so the number of passes matters: one forward and one backward for an activation in C++
(`nbsnn.fused`, for float32 on a CPU), and four and four in torch.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nbsnn import fused
from nbsnn.gradients import with_values
from nbsnn.quant.levels import LEVEL_STARTS, NEAREST_LEVEL, WEIGHT_BITS, apot_levels, apot_numerators, nearest_level_on
from nbsnn.sums import dot, in_storage_order, is_dense, moments, total

__all__ = [
    "SMALLEST_SCALE",
    "WEIGHT_BITS",
    "EdgeRange",
    "QuantizedWeight",
    "apot_levels",
    "apot_nearest",
    "apot_numerators",
    "apot_unit",
    "apot_weight",
    "at_least",
    "edge_step",
    "quantize_activation",
    "quantize_edge_weight",
    "quantize_uniform_weight",
    "quantize_weight",
    "uniform_levels",
]  # fmt: skip

EdgeRange = Literal["max", "max_abs"]

SMALLEST_SCALE = 1e-3  # minimum of thresholds and scales in use, so that a large step cannot make one negative

_BLOCK = {"cpu": 2**17}  # weights quantized at a time: on a CPU intermediate results stay in the cache
_BLOCK_ELSEWHERE = 2**30


def _signed_levels(weight: Tensor, mean: Tensor, deviation: Tensor, weight_scale: Tensor, *, bits: int) -> Tensor:
    """The level of every weight with its sign, of the weight's shape and memory format.

    The operations are fixed: (w − mean) / deviation / scale in the weight's type, one IEEE 754 operation at a time, compiled or
        not. So a weight has the same level on every machine.
    """
    cells = len(NEAREST_LEVEL[bits]) - 1
    if torch.compiler.is_compiling():  # one fused kernel, and no table that a compiled graph would copy to the device
        unit = divided(divided(weight - mean, deviation), weight_scale)
        cell = (unit.abs().clamp(max=1) * cells).to(torch.int32)
        level = torch.zeros_like(unit)
        for start, value in LEVEL_STARTS[bits]:
            level = torch.where(cell >= start, value, level)
        return level.copysign(unit)
    source = weight if is_dense(weight) else weight.contiguous()
    result, table = torch.empty_like(source), nearest_level_on(bits, weight.dtype, weight.device)
    size = min(_BLOCK.get(weight.device.type, _BLOCK_ELSEWHERE), weight.numel())
    unit_buffer, cell_buffer = source.new_empty(size), source.new_empty(size, dtype=torch.int32)
    parts = torch.split(in_storage_order(source), size)
    for part, level in zip(parts, torch.split(in_storage_order(result), size), strict=True):
        unit, cell = unit_buffer[: part.numel()], cell_buffer[: part.numel()]
        torch.sub(part, mean, out=unit).div_(deviation).div_(weight_scale)
        cell.copy_(torch.abs(unit, out=level).clamp_(max=1).mul_(cells)).clamp_(min=0)  # NaN becomes some integer
        torch.index_select(table, 0, cell, out=level).copysign_(unit)
    return result


def divided(a: Tensor, b: Tensor) -> Tensor:
    """a / b, rounded correctly as in IEEE 754: compiled CUDA code would approximate a float32 division."""
    if torch.compiler.is_compiling() and a.is_cuda and a.dtype == torch.float32:
        return (a.double() / b.double()).float()  # rounding twice is exact here: 53 bits are more than 2·24 + 1
    return a / b


class QuantizedWeight(NamedTuple):
    """A quantized weight with the statistics that its gradient needs."""

    values: Tensor
    mean: Tensor
    deviation: Tensor


@torch.no_grad()
def apot_weight(weight: Tensor, weight_scale: Tensor, *, bits: int, own_scale: bool = False) -> QuantizedWeight:
    """The forward half of `quantize_weight`, without gradient."""
    known = fused.weight(
        weight, weight_scale, partial(nearest_level_on, bits, weight.dtype, weight.device), own_scale=own_scale
    )
    if known is not None:
        return QuantizedWeight(*known)
    mean, deviation = _statistics(weight, own_scale=own_scale)
    level = _signed_levels(weight, mean, deviation, weight_scale, bits=bits)
    # deviation - deviation is 0, or NaN if a weight is not finite, so that the loss shows it.
    unit = weight_scale * deviation if own_scale else weight_scale + (deviation - deviation)
    return QuantizedWeight(level.mul_(unit), mean, deviation)


@torch.no_grad()
def apot_nearest(unit: Tensor, *, bits: int) -> Tensor:
    """The nearest level with its sign of weights in units of the clip."""
    one = torch.ones((), dtype=unit.dtype, device=unit.device)
    return _signed_levels(unit, torch.zeros_like(one), one, one, bits=bits)


@torch.no_grad()
def apot_unit(weight: Tensor, weight_scale: Tensor, *, own_scale: bool) -> Tensor:
    """The factor on the levels in `apot_weight`."""
    return weight_scale * _statistics(weight, own_scale=True)[1] if own_scale else weight_scale


def _statistics(weight: Tensor, *, own_scale: bool) -> tuple[Tensor, Tensor]:
    """Offset and divisor of the normalization, in the weight's type: mean and deviation, or 0 and the root mean square."""
    seen = moments(weight)
    mean, deviation = (torch.zeros_like(seen.mean), seen.root_mean_square) if own_scale else (seen.mean, seen.deviation)
    return mean.to(weight.dtype), deviation.to(weight.dtype).clamp_min(torch.finfo(weight.dtype).tiny)


class _QuantizeWeight(torch.autograd.Function):
    """APoT quantization; mean, deviation and the index of the level are constants for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, weight_scale: Tensor, values: Tensor, mean: Tensor, deviation: Tensor, own_scale: bool
    ) -> Tensor:
        ctx.save_for_backward(weight, weight_scale, values, mean, deviation)
        ctx.own_scale = own_scale
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, weight_scale, values, mean, deviation = ctx.saved_tensors
        known = fused.weight_gradient(grad, weight, weight_scale, (values, mean, deviation), own_scale=ctx.own_scale)
        if known is not None:
            return *known, None, None, None, None
        unit = (weight - mean).div_(deviation * weight_scale)
        inside = torch.ops.aten.hardtanh_backward(grad, unit, -1, 1)
        # d/ds of s·Q(ŵ/s) is Q − ŵ/s inside the clip and ±1 outside, where Q is ±1.
        residue = dot(inside, unit)
        grad_scale = dot(grad, values) / weight_scale - (residue * deviation if ctx.own_scale else residue)
        grad_weight = inside if ctx.own_scale else inside.div_(deviation)
        return grad_weight, grad_scale.to(weight_scale.dtype).view(weight_scale.shape), None, None, None, None


def quantize_weight(weight: Tensor, weight_scale: Tensor, *, bits: int, own_scale: bool = False) -> Tensor:
    """APoT quantization of a layer's normalised weight (Li et al., ICLR 2020).

    Args:
        weight: any shape; normalized over all its entries first: the mean is subtracted, and the result divided by the standard
            deviation.
        weight_scale: scalar s > 0, the clip of the normalised weight; learnable.
        bits: 2, 3, 4 or 5.
        own_scale: for a layer that no batch norm follows. The weight is only divided by its root mean square r, and the result
            multiplied by it: the quantized weight has the scale and the mean of the weight.
    Returns:
        s · level · sign (times r), of the weight's shape. The gradient passes inside the clip (divided by the deviation, unless
        own_scale); the scale receives the clipped part and the rounding residue.
    """
    known = apot_weight(weight.detach(), weight_scale.detach(), bits=bits, own_scale=own_scale)
    result: Tensor = _QuantizeWeight.apply(weight, weight_scale, *known, own_scale)  # type: ignore[no-untyped-call]
    return result


def quantize_edge_weight(weight: Tensor, *, bits: int = 8, edge_range: EdgeRange = "max_abs") -> Tensor:
    """Uniform quantization of the first and the last layer: round(w/m·127)·m/127 at 8 bits.

    Args:
        weight: any shape.
        bits: width of the signed grid.
        edge_range: m is the largest magnitude ("max_abs"), or the maximum ("max"), which the reference checkpoints use.
    Returns:
        The quantized weight; the gradient passes unchanged.
    """
    with torch.no_grad():
        step = edge_step(weight, bits=bits, edge_range=edge_range)
        values = divided(weight.detach(), step).round_().mul_(step)
    return with_values(weight, values)


def edge_step(weight: Tensor, *, bits: int, edge_range: EdgeRange) -> Tensor:
    """The grid's step m / (2^(b-1) − 1) of an edge layer's weight."""
    extreme = weight.max() if edge_range == "max" else weight.abs().max()
    # In float64, rounded once: a GPU would multiply by a rounded reciprocal.
    step: Tensor = (extreme.double() / (2 ** (bits - 1) - 1)).to(weight.dtype)
    return step.clamp_min(torch.finfo(weight.dtype).tiny)


class _QuantizeUniform(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, clip: Tensor, bits: int) -> Tensor:
        unit = divided(weight, clip).clamp_(-1, 1)
        level = uniform_levels(unit.mul_(2 ** (bits - 1) - 1).round_(), bits=bits)
        ctx.save_for_backward(weight, clip, level)
        ctx.bits = bits
        return level * clip

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, clip, level = ctx.saved_tensors
        unit = weight / clip
        inside = torch.ops.aten.hardtanh_backward(grad, unit, -1, 1)
        # d/dc of c·Q(w/c) is Q − w/c inside the clip and ±1 outside, where Q is ±1.
        grad_clip = (grad * level - inside * unit).double().sum_to_size(clip.shape)
        most, count = 2 ** (ctx.bits - 1) - 1, weight.numel() / clip.numel()
        return inside, (grad_clip * min(1.0, (most**3 / count) ** 0.5)).to(clip), None


def quantize_uniform_weight(weight: Tensor, clip: Tensor, *, bits: int) -> Tensor:
    """Uniform symmetric quantization of a weight: round(clamp(w/c, −1, 1)·n)/n·c with n = 2^(bits−1) − 1.

    Args:
        weight: [O, ...].
        clip: c > 0, one number [] or one for each output channel [O, 1, ...]; learnable.
        bits: 2 to 8.
    Returns:
        The quantized weight. The gradient passes inside the clip. The clip receives the clipped part and the rounding residue,
        times a factor that makes a relative step of the clip as large as one of the weights (Esser et al., ICLR 2020, for the
        grid's step c/n), at most 1.
    """
    result: Tensor = _QuantizeUniform.apply(weight, clip, bits)  # type: ignore[no-untyped-call]
    return result


def uniform_levels(whole: Tensor, *, bits: int) -> Tensor:
    """Integers −n..n, n = 2^(bits−1) − 1, as levels −1..1 in the same floating-point type; −0 becomes 0."""
    return divided(whole + 0.0, torch.full((), 2 ** (bits - 1) - 1, dtype=whole.dtype, device=whole.device))


def at_least(parameter: Tensor, smallest: float = SMALLEST_SCALE, *, most: float | None = None) -> Tensor:
    """max(parameter, smallest), and `most` at most; the gradient is the identity, so a parameter can come back from outside."""
    return with_values(parameter, parameter.detach().clamp(smallest, most))


def _plus_multiple(a: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """a + factor · x for scalars a and factor, with one rounding where the processor has fused multiply-add."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.add(
            a, x, alpha=factor.item()
        )  # the same bits as addcmul, which is not vectorized for scalars: 4 times as fast
    return torch.addcmul(a, x, factor)


class _QuantizeActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, levels: int, tolerance: float) -> Tensor:
        # `scaled` is x·L/θ + ½, clipped: it carries the inside/outside mask to the backward pass.
        shift = 0.5 + tolerance
        ctx.levels, ctx.shift = levels, shift
        known = fused.activation(x, threshold, levels=levels, shift=shift)
        if known is not None:
            scaled, y = known
            ctx.save_for_backward(scaled, threshold, y)
            return y
        scaled = _plus_multiple(torch.full_like(threshold, shift), x, levels / threshold).clamp_(shift, levels + shift)
        y = scaled.floor().mul_(threshold / levels)
        ctx.save_for_backward(scaled, threshold, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        scaled, threshold, y = ctx.saved_tensors
        shift, levels = ctx.shift, ctx.levels
        known = fused.activation_gradient(grad, scaled, threshold, levels=levels, shift=shift)
        if known is not None:
            return *known, None, None
        # d/dθ is q/L − x/θ inside and 1 above, where q/L is 1 (PACT with the rounding residue).
        rounded = dot(grad, y) / threshold  # first: what is read last is in the cache for the layer below
        inside = torch.ops.aten.hardtanh_backward(grad, scaled, shift, levels + shift)
        residue = dot(inside, scaled) - shift * total(inside)
        grad_threshold = rounded - residue / levels
        return inside, grad_threshold.to(threshold.dtype).view(threshold.shape), None, None


def quantize_activation(x: Tensor, threshold: Tensor, *, bits: int, tolerance: float = 0.0) -> Tensor:
    """Uniform quantization of an activation: q·θ/L with q = floor(clamp(x/θ, 0, 1)·L + ½), L = 2^b − 1.

    Args:
        x: any shape, in units of the activation.
        threshold: scalar θ > 0, the clipping level; learnable.
        bits: b, 1 to 8.
        tolerance: added to the ½, in units of a step; neurons of exact schedules have the same tolerance, so that ties are
            rounded alike in floating point.
    Returns:
        The quantized activation. Halves round up, as in an integrate-and-fire neuron that starts at θ/2. The gradient passes
        inside the clip; the threshold receives the clipped part and the rounding residue.
    """
    levels = 2**bits - 1
    if not torch.is_grad_enabled():  # nothing to keep for a backward pass
        known = fused.activation(x, threshold, levels=levels, shift=0.5 + tolerance, keep=False)
        if known is not None:
            return known[1]
    result: Tensor = _QuantizeActivation.apply(x, threshold, levels, tolerance)  # type: ignore[no-untyped-call]
    return result
