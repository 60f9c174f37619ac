"""The levels of weights in additive powers of two (APoT; Li, Dong & Wang, ICLR 2020), and rounding to the nearest."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WEIGHT_BITS = (2, 3, 4, 5)

_Row = NDArray[np.float64]

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


def normalised_weights(codes: Tensor, *, bits: int, deviation: float) -> Tensor | None:
    """A number for each weight, within the cell of its level, such that all have mean 0 and this standard deviation.

    First a number for each code: a·(level − m), clipped to the cells, with the middle of its cell for the level 0. m is found
    for each a by bisection, since the mean falls as m rises, and so is a. Where no a gives the deviation, weights of one code
    get different numbers, see `_between`.

    Args:
        codes: of b-bit weights, int64, the sign in the highest bit.
        bits: b.
        deviation: with Bessel's correction, in units of the largest level.
    Returns:
        float64, of the shape of `codes`, or None if the cells do not allow it.
    """
    counts = torch.bincount(codes.flatten().cpu(), minlength=2**bits).double()
    levels, count = apot_levels(bits), codes.numel()  # no weight is more than √count deviations from the mean
    outermost = torch.tensor([max(100.0, count**0.5) * max(1.0, deviation)]).double()
    bounds = torch.cat([torch.zeros(1).double(), (levels[1:] + levels[:-1]) / 2, outermost])
    middles = torch.cat([bounds[1:2] / 2, levels[1:]])  # 0 has two cells, one for each sign, and may be the only level
    for margin in (0.1, 0.01, 0.001):  # of a cell's width, for later rounding errors
        inset = margin * (bounds[1:] - bounds[:-1]).clamp_max(bounds[1])
        low, high = bounds[:-1] + inset, bounds[1:] - inset
        low, high = torch.cat([low, -high]), torch.cat([high, -low])
        found = _spread(torch.cat([middles, -middles]), counts, (low, high), deviation)
        if found is not None:
            return found.to(codes.device)[codes]
        between = _between(codes, counts, (low, high), deviation)
        if between is not None:
            return between
    return None


def _spread(levels: Tensor, counts: Tensor, cells: tuple[Tensor, Tensor], deviation: float) -> Tensor | None:
    """a·(level − m), clipped to the cells: [2^b], or None if no a gives the deviation."""
    weights, (low, high) = counts.numpy() / float(counts.sum()), (edge.numpy() for edge in cells)
    whole, bessel = levels.numpy(), float(counts.sum()) / max(float(counts.sum()) - 1, 1)
    least, most = 1e-3, 1e3 * max(1.0, deviation)
    for _ in range(50):
        a = (least * most) ** 0.5
        x = _centred(a * whole, weights, low, high)
        least, most = (a, most) if (weights @ x**2 * bessel) ** 0.5 < deviation else (least, a)
    close = abs((weights @ x**2 * bessel) ** 0.5 / deviation - 1) < 1e-9 and abs(weights @ x) < 1e-9
    return torch.from_numpy(x) if close else None


def _centred(values: _Row, weights: _Row, low: _Row, high: _Row) -> _Row:
    """The values minus a number m, clipped to the cells, with a weighted mean of 0 if any m gives that."""
    least, most = float((values - high).min()), float((values - low).max())
    for _ in range(80):
        m = (least + most) / 2
        x = np.clip(values - m, low, high)
        least, most = (m, most) if weights @ x > 0 else (least, m)
    return x


def _between(codes: Tensor, counts: Tensor, cells: tuple[Tensor, Tensor], deviation: float) -> Tensor | None:
    """Weights on the line between those of mean 0 with the least and those with about the largest deviation.

    All have mean 0, and the sum of squares is quadratic along the line. The largest deviation has the weights of the lowest
    levels at the lower ends of their cells, those of the highest at the upper ends, and at most one within its cell.
    """
    low, high = cells
    room = -float(counts @ low)  # the total that weights may be raised by from the lower ends, for mean 0
    if codes.numel() < 2 or room < 0 or float(counts @ high) < 0:
        return None
    x, flat = low.to(codes.device)[codes].flatten(), codes.flatten()
    for code in (low + high).argsort(descending=True).tolist():
        width, members = float(high[code] - low[code]), int(counts[code])
        raised = min(members, int(room // width))
        where = (flat == code).nonzero()[: raised + 1, 0]
        x[where[:raised]] += width
        room = max(0.0, room - raised * width)
        if raised < members:
            x[where[raised]] += room
            break
    start = _centred(np.zeros(len(low)), (counts / counts.sum()).numpy(), low.numpy(), high.numpy())
    near = torch.from_numpy(start).to(x)[flat]
    # |near + t·(x − near)|² is the wanted sum of squares.
    far = x - near
    a, b, c = float(far @ far), float(near @ far), float(near @ near) - deviation**2 * (codes.numel() - 1)
    if a == 0 or c > 0 or a + 2 * b + c < 0:
        return None
    t: float = ((b * b - a * c) ** 0.5 - b) / a
    return (near + t * far).view(codes.shape)
