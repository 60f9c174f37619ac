"""Integrate-and-fire: the only loop over time in the package, the rules of one step, and folding time into the batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# A signed neuron under the published schedule cancels a spike at this membrane or below, in units of the activation (Hu et al.,
# 2023): slightly below zero, so that rounding in single precision does not trigger it.
RETRACT_AT = -1e-3


class Limits(NamedTuple):
    """Limits of a neuron, in the membrane's unit; integers in an integer network.

    Attributes:
        threshold: θ; a spike subtracts it from the membrane.
        levels: the largest count of the layer.
        retract: at this membrane or below, the published rule cancels a spike.
        signed: whether negative spikes are allowed.
    """

    threshold: Tensor | int
    levels: int
    retract: float | int
    signed: bool


Rule = Callable[[Tensor, Tensor, Limits], Tensor]  # membrane, net count and limits → spike −1, 0 or 1, int8


def published_rule(membrane: Tensor, count: Tensor, limits: Limits) -> Tensor:
    """Fire at the threshold; signed neurons cancel a spike slightly below zero (Hu et al., 2023, eq. 11)."""
    spike = (membrane >= limits.threshold).to(torch.int8)
    if limits.signed:
        spike = spike - ((membrane <= limits.retract) & (count > 0)).to(torch.int8)
    return spike


def capped_rule(membrane: Tensor, count: Tensor, limits: Limits) -> Tensor:
    """Fire at the threshold while the count is below its cap; cancel below zero, not at zero, where a tie would alternate."""
    spike = ((membrane >= limits.threshold) & (count < limits.levels)).to(torch.int8)
    if limits.signed:
        spike = spike - ((membrane < 0) & (count > 0)).to(torch.int8)
    return spike


def integrate_and_fire(
    current: Tensor,
    threshold: Tensor,
    *,
    signed: bool,
    cap: int | None = None,
    membrane: Tensor | None = None,
    count: Tensor | None = None,
    rule: Rule | None = None,
) -> Tensor:
    """Spikes of integrate-and-fire neurons with reset by subtraction (Hu et al., 2023, eq. 11).

    With autograd enabled, each spike has a surrogate gradient: that of (membrane / θ) if the membrane is within half a
        threshold of firing or of cancelling, and 0 elsewhere (a rectangle of width 1; Wu et al., 2018). The reset is
        differentiated too, so each unit of current affects at most one spike: gradients neither explode nor vanish over time.

    Args:
        current: [T, ...] input of each step, in units of the activation.
        threshold: scalar θ > 0. A neuron fires when its membrane reaches θ, and θ is subtracted.
        signed: allow a negative spike, which cancels an earlier positive one and adds θ to the membrane.
        cap: the largest net count; a signed neuron then cancels as soon as its membrane is negative: the rule of the schedule
            "settle". Without it, the published rule.
        membrane: [...] initial membrane; θ/2 unless given, so that firing rounds to nearest.
        count: [...] net spikes before the first step; 0 unless given.
        rule: when to fire in a step; by `cap` unless given.
    Returns:
        [T, ...] spikes in {0, 1}, or {-1, 0, 1} if signed; their sum over T lies in [0, T]. Charge is conserved: the final
        membrane is the initial one + Σ current − θ · Σ spikes. A neuron whose current is not finite gives NaN in the last step.
    """
    rule = rule or (published_rule if cap is None else capped_rule)
    limits = Limits(threshold.detach(), len(current) if cap is None else cap, RETRACT_AT, signed)
    membrane = (threshold / 2).expand(current.shape[1:]) if membrane is None else membrane
    count = torch.zeros_like(current[0]) if count is None else count
    learning = torch.is_grad_enabled() and (current.requires_grad or threshold.requires_grad or membrane.requires_grad)
    spikes = []
    for step in current:
        membrane = membrane + step
        spike = rule(membrane.detach(), count, limits).to(current.dtype)
        count = count + spike
        if learning:
            spike = _Surrogate.apply(membrane, threshold, spike, _is_near(membrane.detach(), count - spike, limits))  # type: ignore[no-untyped-call]
        membrane = membrane - spike * threshold
        spikes.append(spike)
    # NaN never reaches the threshold and would look like silence. The difference is 0, or NaN if a membrane is not finite.
    spikes[-1] = spikes[-1] + (membrane.detach() - membrane.detach())
    return torch.stack(spikes)


def _is_near(membrane: Tensor, count: Tensor, limits: Limits) -> Tensor:
    """Bool: whether the membrane is within half a threshold of firing, or of cancelling an earlier spike."""
    half = limits.threshold / 2
    near = (membrane >= half) & (membrane < 3 * half) & (count < limits.levels)
    if limits.signed:
        near = near | ((membrane >= -half) & (membrane < half) & (count > 0))
    return near


class _Surrogate(torch.autograd.Function):
    """A spike with the gradient of membrane / threshold where `near` is true."""

    @staticmethod
    def forward(ctx: Any, membrane: Tensor, threshold: Tensor, spike: Tensor, near: Tensor) -> Tensor:
        ctx.save_for_backward(membrane, threshold, near)
        return spike

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        membrane, threshold, near = ctx.saved_tensors
        inside = grad * near / threshold
        return inside, -(inside * membrane).sum() / threshold, None, None


def fold(sequence: Tensor) -> Tensor:
    """[T, B, ...] → [T·B, ...], time-major: the layout for all layers except neurons."""
    return sequence.flatten(0, 1)


def unfold(folded: Tensor, steps: int) -> Tensor:
    """[T·B, ...] → [T, B, ...]."""
    return folded.reshape(steps, -1, *folded.shape[1:])
