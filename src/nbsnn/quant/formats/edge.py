"""A uniform grid over the weight's range: the format of the first and the last layer."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nbsnn.quant.formats.base import WeightFormat
from nbsnn.quant.functional import EdgeRange, edge_step, quantize_edge_weight


@dataclass(frozen=True)
class EdgeUniform(WeightFormat):
    """A code is an integer number of steps.

    Attributes:
        edge_range: the grid reaches the largest magnitude ("max_abs"), or the maximum ("max") as in the reference checkpoints.
    """

    edge_range: EdgeRange = "max_abs"

    name: ClassVar[str] = "edge_uniform"
    widths: ClassVar[tuple[int, ...]] = (8,)
    edge: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return f"edge, {self.edge_range}"

    def quantize(self, weight: Tensor, scale: Tensor | None) -> Tensor:
        return quantize_edge_weight(weight, bits=self.bits, edge_range=self.edge_range)

    def measure_unit(self, weight: Tensor, scale: Tensor | None) -> Tensor:
        return edge_step(weight, bits=self.bits, edge_range=self.edge_range)

    def float_weight(self, values: Tensor, unit: Tensor) -> tuple[Tensor, None] | None:
        # The largest value determines the step, but rounding may give a neighboring float of the step: then try neighbors of
        # the value.
        extreme = values.max() if self.edge_range == "max" else values.abs().max()
        for towards, times in ((0.0, 0), (torch.inf, 1), (0.0, 1), (torch.inf, 2), (0.0, 2)):
            largest = extreme
            for _ in range(times):
                largest = torch.nextafter(largest, torch.full_like(largest, towards))
            weight = torch.where(values.abs() == extreme, values.sign() * largest, values)
            if torch.equal(self.quantize(weight, None), values):
                return weight, None
        return None

    def codes(self, values: Tensor, unit: Tensor) -> Tensor:
        try:
            return super().codes(values, unit)
        except ValueError:
            raise ValueError(
                f"edge_range={self.edge_range!r} gives weights beyond {self.bits} bits (the least weight is larger than "
                "the greatest); train with edge_range='max_abs' to pack"
            ) from None

    def header(self) -> dict[str, Any]:
        return {"bits": self.bits, "edge_range": self.edge_range, "fixed": self.fixed}
