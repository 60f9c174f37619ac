"""Linear maps of planes with integer weights, rows and columns apart: averages, enlargements, crops, borders, spread places.

Each place of the result is a weighted sum of a few places of the source; common divisors are in the gain of what reads the
result. An axis stores the places and weights of these sums, so integers of any type are mapped without rounding.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbsnn.integer.frozen import freeze_fields, thawed
from nbsnn.shapes import plane

Index = NDArray[np.int64]
Index32 = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class AxisMap:
    """One axis: result[i] = Σ_k weight[k, i] · source[index[k, i]].

    Attributes:
        index: [K, n] int32, −1 for nothing.
        weight: [K, n] int32, 0 where the index is −1.
        size: places of the source.
    """

    index: Tensor
    weight: Tensor
    size: int

    def __post_init__(self) -> None:
        freeze_fields(self)

    @classmethod
    def of_matrix(cls, matrix: Tensor) -> "AxisMap":
        """From a matrix of integers [n, size]."""
        reads = max(int((matrix != 0).sum(1).max()), 1)
        order = torch.argsort((matrix == 0).to(torch.int8), dim=1, stable=True)[:, :reads]  # places with a weight first
        weight = matrix.gather(1, order)
        index = torch.where(weight != 0, order, -1)
        return cls(index.T.to(torch.int32).contiguous(), weight.T.to(torch.int32).contiguous(), matrix.shape[1])

    @classmethod
    def choosing(cls, index: Tensor, size: int) -> "AxisMap":
        """Places by index [n], −1 giving 0."""
        return cls(index[None].to(torch.int32), (index[None] >= 0).to(torch.int32), size)

    @property
    def places(self) -> int:
        """Places of the result."""
        return self.index.shape[1]

    @property
    def reads(self) -> int:
        """The most places that a place of the result is summed from."""
        return self.index.shape[0]

    @cached_property
    def largest(self) -> int:
        """The largest Σ|weight| of a place of the result."""
        return int(thawed(self.weight).to(torch.int64).abs().sum(0).max())

    @cached_property
    def is_identity(self) -> bool:
        """Whether the result is the source."""
        index = torch.arange(self.size, device=self.index.device)
        same = self.reads == 1 and self.places == self.size and torch.equal(thawed(self.index)[0].long(), index)
        return same and bool((thawed(self.weight) == 1).all())

    def matrix(self) -> Tensor:
        """[n, size] int64, on the CPU."""
        result = torch.zeros(self.places, self.size, dtype=torch.int64)
        index, weight = thawed(self.index).long().cpu(), thawed(self.weight).long().cpu()
        return result.scatter_add_(1, index.clamp_min(0).T, weight.T)

    def after(self, first: "AxisMap") -> "AxisMap":
        """This map of the result of `first`."""
        return self if first.is_identity else AxisMap.of_matrix(self.matrix() @ first.matrix())

    def apply(self, x: Tensor, axis: int) -> Tensor:
        """The map of one axis of x; of x's type, which must hold the sums."""
        if self.is_identity:
            return x
        shape = [-1 if a == axis else 1 for a in range(x.dim())]
        total: Tensor | None = None
        for index, weight in zip(thawed(self.index).long(), thawed(self.weight), strict=True):
            part = x.index_select(axis, index.clamp_min(0)) * weight.to(x.dtype).view(shape)
            total = part if total is None else total + part
        assert total is not None
        return total

    @cached_property
    def chooses(self) -> bool:
        """Whether each place of the result is a place of the source, or nothing."""
        return self.reads == 1 and torch.equal(thawed(self.weight), (thawed(self.index) >= 0).to(torch.int32))

    def extreme(self, x: Tensor, axis: int, *, lowest: bool) -> Tensor:
        """The maximum (or minimum) of the places, in place of their sum; each place of the result must have one."""
        index = thawed(self.index).long()
        rows = torch.where(index < 0, index.amax(0), index)  # another place of the window, in place of nothing
        choose = torch.minimum if lowest else torch.maximum
        total = x.index_select(axis, rows[0])
        for row in rows[1:]:
            total = choose(total, x.index_select(axis, row))
        return total

    def reach(self) -> "AxisMap":
        """The same places with weights of 1."""
        return AxisMap(self.index, (thawed(self.weight) != 0).to(torch.int32), self.size)


@dataclass(frozen=True, eq=False)
class PlaneMap:
    """Rows, then columns. Lines [C, L] are planes of one row, and a row of channels [C] is a plane of one place."""

    rows: AxisMap
    columns: AxisMap

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the source."""
        return self.rows.size, self.columns.size

    @property
    def places(self) -> tuple[int, int]:
        """Rows and columns of the result."""
        return self.rows.places, self.columns.places

    @property
    def reads(self) -> int:
        """The most places that a place of the result is summed from."""
        return self.rows.reads * self.columns.reads

    @property
    def largest(self) -> int:
        """The largest Σ|weight| of a place of the result."""
        return self.rows.largest * self.columns.largest

    @property
    def is_identity(self) -> bool:
        return self.rows.is_identity and self.columns.is_identity

    def after(self, first: "PlaneMap | None") -> "PlaneMap":
        """This map of the result of `first`."""
        return self if first is None else PlaneMap(self.rows.after(first.rows), self.columns.after(first.columns))

    def apply(self, x: Tensor) -> Tensor:
        """[B, C, H', W'] of x [B, C, H, W] or with fewer axes; of x's type, which must hold the sums."""
        x = x.reshape(len(x), *plane(x.shape[1:]))
        return self.columns.apply(self.rows.apply(x, 2), 3)

    @property
    def chooses(self) -> bool:
        """Whether each place of the result is a place of the source, or nothing."""
        return self.rows.chooses and self.columns.chooses

    def extreme(self, x: Tensor, *, lowest: bool) -> Tensor:
        """As `apply`, with the maximum (or minimum) of the places in place of their sum."""
        x = x.reshape(len(x), *plane(x.shape[1:]))
        return self.columns.extreme(self.rows.extreme(x, 2, lowest=lowest), 3, lowest=lowest)

    def reach(self) -> "PlaneMap":
        """The same places with weights of 1."""
        return PlaneMap(self.rows.reach(), self.columns.reach())

    def table(self) -> tuple[Index, Index]:
        """Places of the source and their weights for each place of the result, both [H'·W', reads]; −1 and 0 for nothing."""
        index = self.windows().astype(np.int64)
        wy, wx = (thawed(axis.weight).numpy().astype(np.int64).T for axis in (self.rows, self.columns))
        weight = (wy[:, None, :, None] * wx[None, :, None, :]).reshape(index.shape)
        return index, np.where(index >= 0, weight, 0)

    def windows(self) -> Index32:
        """Places of the source for each place of the result, [H'·W', reads]; −1 for nothing."""
        y, x = (thawed(axis.index).numpy().T for axis in (self.rows, self.columns))
        index: Index32 = y[:, None, :, None] * np.int32(self.columns.size) + x[None, :, None, :]
        index[np.broadcast_to((y[:, None, :, None] < 0) | (x[None, :, None, :] < 0), index.shape)] = -1
        return index.reshape(-1, self.reads)
