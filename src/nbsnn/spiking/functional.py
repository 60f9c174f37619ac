"""Integrate-and-fire: the one loop over time in the package, and the folding of time into the batch."""

import torch
from torch import Tensor

# A signed neuron under the published schedule takes a spike back at this membrane or below, in units of the activation
# (Hu et al., 2023): a little below zero, so that rounding in single precision does not set it off.
RETRACT_AT = -1e-3


def integrate_and_fire(
    current: Tensor,
    threshold: Tensor,
    *,
    signed: bool,
    cap: int | None = None,
    membrane: Tensor | None = None,
    count: Tensor | None = None,
) -> Tensor:
    """Spikes of integrate-and-fire neurons with reset by subtraction (Hu et al., 2023, eq. 11).

    Args:
        current: [T, ...] input of each step, in units of the activation.
        threshold: scalar θ > 0. A neuron fires when its membrane reaches θ, and θ is taken off.
        signed: allow a negative spike that takes back an earlier positive one, giving θ back to the membrane.
        cap: with a cap, a signed neuron never exceeds this net count and takes back as soon as its membrane is negative:
            the rule of the "settle" schedule. Without, the published rule.
        membrane: [...] at the start; θ/2 unless given, so that firing rounds to nearest.
        count: [...] net spikes before the first step; 0 unless given.
    Returns:
        [T, ...] spikes in {0, 1}, or {-1, 0, 1} if signed; their sum over T lies in [0, T]. Charge is conserved: the final
        membrane is the initial one + Σ current − θ · Σ spikes.
    """
    membrane = (threshold / 2).expand(current.shape[1:]) if membrane is None else membrane
    count = torch.zeros_like(current[0]) if count is None else count
    spikes = torch.empty_like(current)
    for t in range(len(current)):
        membrane = membrane + current[t]
        spike = (membrane >= threshold).to(current.dtype)
        if cap is not None:
            spike = spike * (count < cap)
        if signed:
            sunken = membrane <= RETRACT_AT if cap is None else membrane < 0
            spike = spike - (sunken & (count > 0)).to(current.dtype)
        membrane = membrane - spike * threshold
        count = count + spike
        spikes[t] = spike
    return spikes


def fold(sequence: Tensor) -> Tensor:
    """[T, B, ...] → [T·B, ...], time-major: what every layer but the neuron sees."""
    return sequence.flatten(0, 1)


def unfold(folded: Tensor, steps: int) -> Tensor:
    """[T·B, ...] → [T, B, ...]."""
    return folded.reshape(steps, -1, *folded.shape[1:])
