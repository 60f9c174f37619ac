"""Integrate-and-fire: the one loop over time in the package, the rules of one step, and the folding of time into the batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# A signed neuron under the published schedule takes a spike back at this membrane or below, in units of the activation
# (Hu et al., 2023): a little below zero, so that rounding in single precision does not set it off.
RETRACT_AT = -1e-3


class Limits(NamedTuple):
    """What a neuron compares its membrane with, in the membrane's unit; whole numbers in an integer network.

    Attributes:
        threshold: θ; a spike takes it off the membrane.
        levels: the largest count that the layer stands for.
        retract: at this membrane or below, the published rule takes a spike back.
        signed: whether spikes may be taken back at all.
    """

    threshold: Tensor | int
    levels: int
    retract: float | int
    signed: bool


Rule = Callable[[Tensor, Tensor, Limits], Tensor]  # membrane, net count and limits → spike −1, 0 or 1, int8


def published_rule(membrane: Tensor, count: Tensor, limits: Limits) -> Tensor:
    """Fire at the threshold; signed neurons take a spike back a little below zero (Hu et al., 2023, eq. 11)."""
    spike = (membrane >= limits.threshold).to(torch.int8)
    if limits.signed:
        spike = spike - ((membrane <= limits.retract) & (count > 0)).to(torch.int8)
    return spike


def capped_rule(membrane: Tensor, count: Tensor, limits: Limits) -> Tensor:
    """Fire at the threshold while the count is below its cap; take back below zero, never at zero, where ties would live on."""
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

    With autograd on, each step's spike has a surrogate one: that of (membrane / θ), where the membrane is within
    half a threshold of firing or of taking back, and 0 elsewhere (a rectangle of width 1; Wu et al., 2018). The reset passes it
    on with its sign, so that every unit of current is answered by at most one spike: gradients neither explode nor vanish over
    time.

    Args:
        current: [T, ...] input of each step, in units of the activation.
        threshold: scalar θ > 0. A neuron fires when its membrane reaches θ, and θ is taken off.
        signed: allow a negative spike that takes back an earlier positive one, giving θ back to the membrane.
        cap: with a cap, the net count never exceeds it, and a signed neuron takes back as soon as its membrane is negative:
            the rule of the "settle" schedule. Without, the published rule.
        membrane: [...] at the start; θ/2 unless given, so that firing rounds to nearest.
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
    # NaN reaches no threshold and would pass for silence. The difference is 0, or NaN where a membrane is not finite.
    spikes[-1] = spikes[-1] + (membrane.detach() - membrane.detach())
    return torch.stack(spikes)


def _is_near(membrane: Tensor, count: Tensor, limits: Limits) -> Tensor:
    """Bool: is the membrane within half a threshold of firing, or of taking back a spike that there is?"""
    half = limits.threshold / 2
    near = (membrane >= half) & (membrane < 3 * half) & (count < limits.levels)
    if limits.signed:
        near = near | ((membrane >= -half) & (membrane < half) & (count > 0))
    return near


class _Surrogate(torch.autograd.Function):
    """A spike with the gradient of membrane / threshold where `near` is set."""

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
    """[T, B, ...] → [T·B, ...], time-major: what every layer but the neuron sees."""
    return sequence.flatten(0, 1)


def unfold(folded: Tensor, steps: int) -> Tensor:
    """[T·B, ...] → [T, B, ...]."""
    return folded.reshape(steps, -1, *folded.shape[1:])
