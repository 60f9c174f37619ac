"""The levels of weights in additive powers of two (APoT; Li, Dong & Wang, ICLR 2020), and which of them is nearest."""

from functools import cache

import torch
from torch import Tensor

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


NEAREST_LEVEL = {bits: _nearest_level_table(bits) for bits in WEIGHT_BITS}

LEVEL_STARTS = {
    bits: [(cell, level) for cell, level in enumerate(table.tolist()) if cell and level != table[cell - 1]]
    for bits, table in NEAREST_LEVEL.items()
}  # the cells where a level begins


@cache
def nearest_level_on(bits: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The table where it is used: a copy from the host would wait for all that the device has to do."""
    with torch.inference_mode(False):
        return NEAREST_LEVEL[bits].to(device, dtype)
