"""The levels of weights in additive powers of two (APoT; Li, Dong & Wang, ICLR 2020), and rounding to the nearest."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WEIGHT_BITS = (2, 3, 4, 5)

# Each magnitude is a sum of one term of each row, divided by the largest such sum.
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
    """The nearest level for each cell of a grid that contains every midpoint between levels.

    With denominator D all midpoints are multiples of 1/(2D), so cell floor(2D·|x|) determines the level: a look-up costs a
    seventh of torch.bucketize. The cell that starts at a midpoint belongs to the upper level.
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
    """The table on the device that uses it: a copy from the host would synchronize with the device."""
    with torch.inference_mode(False):
        return NEAREST_LEVEL[bits].to(device, dtype)


def normalised_codes(codes: Tensor, *, bits: int, deviation: float) -> Tensor | None:
    """A number for each code, within the cell of its level, such that all weights have mean 0 and this standard deviation.

    They are a·(level − m), clipped to the cells, with the middle of its cell for the level 0: m is found for each a by
    bisection, since the mean falls as m rises, and so is a, since the deviation rises with it.

    Args:
        codes: of b-bit weights, int64, the sign in the highest bit.
        bits: b.
        deviation: with Bessel's correction, in units of the largest level.
    Returns:
        [2^b] float64, or None if the cells do not allow it.
    """
    counts = torch.bincount(codes.flatten().cpu(), minlength=2**bits).double()
    levels = apot_levels(bits)
    outermost = torch.tensor([100 * max(1.0, deviation)]).double()
    bounds = torch.cat([torch.zeros(1).double(), (levels[1:] + levels[:-1]) / 2, outermost])
    middles = torch.cat([bounds[1:2] / 2, levels[1:]])  # 0 has two cells, one for each sign, and may be the only level
    for margin in (0.1, 0.01, 0.001):  # of a cell's width, for later rounding errors
        inset = margin * (bounds[1:] - bounds[:-1]).clamp_max(bounds[1])
        low, high = bounds[:-1] + inset, bounds[1:] - inset
        cells = torch.cat([low, -high]), torch.cat([high, -low])
        found = _spread(torch.cat([middles, -middles]), counts, cells, deviation)
        if found is not None:
            return found.to(codes.device)
    return None


def _spread(levels: Tensor, counts: Tensor, cells: tuple[Tensor, Tensor], deviation: float) -> Tensor | None:
    weights, (low, high) = counts.numpy() / float(counts.sum()), (edge.numpy() for edge in cells)
    whole, bessel = levels.numpy(), float(counts.sum()) / max(float(counts.sum()) - 1, 1)

    def centred(a: float) -> NDArray[np.float64]:
        least, most = -200.0, 200.0
        for _ in range(60):
            m = (least + most) / 2
            x = np.clip(a * (whole - m), low, high)
            least, most = (m, most) if weights @ x > 0 else (least, m)
        return x

    least, most = 1e-3, 1e3 * max(1.0, deviation)
    for _ in range(50):
        a = (least * most) ** 0.5
        x = centred(a)
        least, most = (a, most) if (weights @ x**2 * bessel) ** 0.5 < deviation else (least, a)
    close = abs((weights @ x**2 * bessel) ** 0.5 / deviation - 1) < 1e-9 and abs(weights @ x) < 1e-9
    return torch.from_numpy(x) if close else None
