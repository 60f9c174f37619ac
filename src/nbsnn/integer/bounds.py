"""Bounds on sums, computed when multipliers are chosen and again when a program is loaded from a file."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from math import floor

import torch
from torch import Tensor

from nbsnn.integer.nodes import Branch
from nbsnn.spiking.functional import RETRACT_AT

NARROW, WIDE = 2**31, 2**52  # upper limits of sums; float64 represents all integers below the second
MOST_IMAGE_SUMS, MOST_IMAGE_PRODUCTS = 2**53, 2**62  # of the image: exact in float64; with a multiplier, in int64
_AT_A_TIME = 2**22  # weights


def row_sums(branch: Branch, channels: int) -> Tensor:
    """Σ|weight| of each output channel, [O] float64, exact; 1 for the identity. A map of places behind it makes them larger."""
    if branch.weight is None:
        return torch.ones(channels, dtype=torch.float64)
    gain = 1 if branch.after is None else branch.after.largest
    rows = branch.weight.flatten(1)
    parts = torch.split(rows, max(1, _AT_A_TIME // rows.shape[1]))  # of a large linear layer, whose copy would take gigabytes
    return gain * torch.cat([part.to(torch.int32).abs().sum(1, dtype=torch.float64) for part in parts])


def retract_at(fraction_bits: int, height: float) -> int:
    """The membrane at which a signed neuron cancels a spike, ⌊−10⁻³ · 2^F / height⌋."""
    return floor(RETRACT_AT * (2.0**fraction_bits / height))


def largest_sum(
    branches: Sequence[Branch], loads: Sequence[Tensor], bias: Tensor, fraction_bits: int, *,
    timesteps: int, sizes: Mapping[str, int], constants: AbstractSet[str],
) -> float:  # fmt: skip
    """The largest magnitude of a unit's membrane or of an intermediate sum, over the channels. Exact below 2^53.

    Args:
        branches: of the unit, with integer multipliers of any type.
        loads: [O] float64 for each branch, Σ|weight|.
        bias: [O], or [O, ...] for each place.
        fraction_bits: F.
        timesteps: T.
        sizes: value → largest |value| in a step.
        constants: values that do not change in time.
    """
    T = timesteps
    total = T * bias.double().abs().flatten(1).amax(1) if bias.dim() > 1 else T * bias.double().abs()
    total = total + (T + 0.5) * 2**fraction_bits
    largest = 0.0
    for branch, load in zip(branches, loads, strict=True):
        size = load * sizes[branch.source]
        product = size * branch.multiplier.double().abs()
        if branch.source in constants:
            total = total + T * (product / 2.0**branch.shift + 1)
        else:
            total = total + T * product
            largest = max(largest, T * float(size.max()))
    return max(largest, float(total.max()))
