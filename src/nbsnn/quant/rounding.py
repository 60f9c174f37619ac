"""The levels of a weight that reproduce given outputs best: learned rounding.

Rounding each weight to its nearest level is not best for the layer's output, since errors of different weights can cancel
(AdaRound; Nagel et al., ICML 2020). The squared error of the output is quadratic in the weight, with the second moments of the
input as its matrix. It is minimized over the levels by coordinate descent: weight after weight goes to the level that is best
with all others as they are, until none moves. That needs neither the float relaxation nor the many gradient steps of AdaRound,
and a weight may move by more than one level.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nbsnn.quant.formats import WeightFormat

_SHARES = torch.linspace(0.3, 1.0, 71)  # candidates for a unit, in units of the largest magnitude
_SWEEPS = 10  # over all weights of a layer, at most
_BLOCK = 64  # inputs whose levels are chosen between two matrix products


@dataclass(frozen=True, eq=False)
class SecondMoments:
    """Second moments of P inputs and targets of a layer with G groups: D inputs and O outputs for each.

    Attributes:
        square: E[x xᵀ], [G, D, D].
        cross: E[y xᵀ], [G, O, D].
        input_mean, target_mean: subtracted from x and y, [G, D] and [G, O]; zeros if the layer has no bias to make up for them.
    """

    square: Tensor
    cross: Tensor
    input_mean: Tensor
    target_mean: Tensor

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor, *, centred: bool) -> "SecondMoments":
        """From inputs [P, G, D] and targets [P, G, O]."""
        x, y = inputs.movedim(0, 1), targets.movedim(0, 1)
        means = [rows.mean(1, keepdim=True) if centred else torch.zeros_like(rows[:, :1]) for rows in (x, y)]
        x, y = x - means[0], y - means[1]
        return cls(x.mT @ x / x.shape[1], y.mT @ x / x.shape[1], means[0][:, 0], means[1][:, 0])

    def held(self, ridge: float) -> Tensor:
        """`square` with `ridge` times its mean diagonal added to the diagonal, [G, D, D]."""
        diagonal = self.square.diagonal(dim1=1, dim2=2)
        power = diagonal.mean(1, keepdim=True).clamp_min(torch.finfo(diagonal.dtype).tiny)
        return self.square + torch.diag_embed((ridge * power).expand_as(diagonal))

    def best_weight(self, weight: Tensor, ridge: float) -> Tensor:
        """The float weight [G, O, D] with the least error, held near the given one by `ridge`."""
        pull = (self.cross - weight @ self.square).double()
        found: Tensor = weight + torch.linalg.solve(self.held(ridge).double(), pull.mT).mT.to(weight)
        return found

    def bias(self, weight: Tensor) -> Tensor:
        """The bias [G, O] with the least error beside this weight."""
        return self.target_mean - (weight @ self.input_mean[..., None])[..., 0]


def learn_rounding(wanted: Tensor, matrix: Tensor, fmt: WeightFormat, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Quantized values V and their unit that nearly minimize Σ (V − W) M (V − W)ᵀ.

    Args:
        wanted: W, [G, O, D].
        matrix: M, [G, D, D], positive definite.
        fmt: gives the levels; one whose `rounded` is defined.
        shape: of the layer's weight.
    Returns:
        V of that shape, and the unit as the format keeps it.
    """
    importance = matrix.diagonal(dim1=1, dim2=2)[:, None].expand_as(wanted).reshape(len(wanted) * wanted.shape[1], -1)
    rows = wanted.reshape(importance.shape)
    unit = _least_error_unit(rows, importance, fmt)
    each = unit.expand(len(rows), 1).reshape(*wanted.shape[:2], 1)

    def nearest(values: Tensor) -> Tensor:
        return fmt.rounded(values, each.expand_as(values))

    values = _descend(nearest(wanted), wanted, matrix, nearest)
    return values.reshape(shape), unit.reshape(-1, *(1 for _ in shape[1:])) if fmt.per_channel else unit.reshape(())


def _least_error_unit(rows: Tensor, importance: Tensor, fmt: WeightFormat) -> Tensor:
    """The unit [1, 1] or [rows, 1] whose nearest levels have the least error, weighted by the diagonal of the matrix."""

    def over(values: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
        return reduce(values, 1, keepdim=True) if fmt.per_channel else reduce(values.reshape(1, -1), 1, keepdim=True)

    largest = over(rows.abs(), torch.amax)
    largest = torch.where(largest > 0, largest, 1.0)
    best, least = largest, torch.full_like(largest, torch.inf)
    for share in _SHARES.tolist():
        error = over((fmt.rounded(rows, (largest * share).expand_as(rows)) - rows).square() * importance, torch.sum)
        best, least = torch.where(error < least, largest * share, best), torch.minimum(error, least)
    return best


def _descend(values: Tensor, wanted: Tensor, matrix: Tensor, nearest: Callable[[Tensor], Tensor]) -> Tensor:
    """Coordinate descent from these values, [G, O, D]; the outputs of all groups go together."""
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    inputs = values.shape[-1]
    for _ in range(_SWEEPS):
        slope = (values - wanted) @ matrix
        moved = False
        for first in range(0, inputs, _BLOCK):
            here = slice(first, min(first + _BLOCK, inputs))
            before, near, inner = values[..., here].clone(), slope[..., here].clone(), matrix[:, here, here]
            for j in range(before.shape[-1]):
                old = values[..., first + j]
                new = nearest((old - near[..., j] / diagonal[:, None, first + j])[..., None])[..., 0]
                near += (new - old)[..., None] * inner[:, None, j]
                values[..., first + j] = new
            change = values[..., here] - before
            moved = moved or bool(change.any())
            slope += change @ matrix[:, here]
        if not moved:
            break
    return values
