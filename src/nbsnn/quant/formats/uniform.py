"""A uniform symmetric grid with a learnable clip, for each layer or each output channel: the format of 2 to 8 bits."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from nbsnn.quant.formats.base import WeightFormat
from nbsnn.quant.functional import at_least, quantize_uniform_weight, uniform_levels

_CLIPS = torch.linspace(0.2, 1.0, 65)  # candidates, in units of the largest magnitude


@dataclass(frozen=True)
class Uniform(WeightFormat):
    """A code is an integer from −n to n, n = 2^(bits−1) − 1, plus 2^(bits−1); `weight_scale` is the weight that n represents.

    The quantized weight has the scale of the float one, whether a batch norm follows or not.

    Attributes:
        scale: one clip for the layer ("tensor"), or one for each output channel ("channel").
    """

    scale: Literal["tensor", "channel"] = "channel"

    name: ClassVar[str] = "uniform"
    widths: ClassVar[tuple[int, ...]] = (2, 3, 4, 5, 6, 7, 8)
    scales: ClassVar[tuple[str, ...]] = ("channel", "tensor")
    smallest_scale: ClassVar[float] = 1e-30  # an absolute weight, and those of a channel may be tiny

    @classmethod
    def for_layer(cls, bits: int, *, normed: bool, scale: str | None = None) -> Self:
        return cls(bits) if scale is None else cls(bits, scale=scale)  # type: ignore[arg-type]

    @property
    def per_channel(self) -> bool:
        return self.scale == "channel"

    @property
    def denominator(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    @property
    def label(self) -> str:
        return f"uniform, per {self.scale}"

    def first_scale(self, weight: Tensor) -> Tensor:
        if self.fixed or weight.is_meta:  # a file or the caller sets it
            return torch.ones(self._shape(weight), dtype=weight.dtype, device=weight.device)
        return self.best_scale(weight)

    def best_scale(self, weight: Tensor) -> Tensor:
        return least_error_clip(weight, self.bits, per_channel=self.per_channel)

    def quantize(self, weight: Tensor, scale: Tensor | None) -> Tensor:
        assert scale is not None
        return quantize_uniform_weight(weight, at_least(scale, _smallest(scale)), bits=self.bits)

    def measure_unit(self, weight: Tensor, scale: Tensor | None) -> Tensor:
        assert scale is not None
        return at_least(scale.detach(), _smallest(scale))

    def rounded(self, weight: Tensor, unit: Tensor) -> Tensor:
        return uniform_levels((weight / unit).clamp(-1, 1).mul_(self.denominator).round_(), bits=self.bits) * unit

    def float_weight(self, values: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        return values.clone(), unit.clone()

    def codes(self, values: Tensor, unit: Tensor) -> Tensor:
        return super().codes(values, unit / self.denominator)

    def values(self, codes: Tensor, unit: Tensor) -> Tensor:
        return uniform_levels((codes - 2 ** (self.bits - 1)).to(unit), bits=self.bits) * unit

    def _shape(self, weight: Tensor) -> tuple[int, ...]:
        return (len(weight), *(1 for _ in weight.shape[1:])) if self.per_channel else ()


def _smallest(scale: Tensor) -> float:
    return max(Uniform.smallest_scale, torch.finfo(scale.dtype).tiny)


@torch.no_grad()
def least_error_clip(weight: Tensor, bits: int, *, per_channel: bool) -> Tensor:
    """The clip of a uniform grid with the least squared error of the weight.

    Args:
        weight: [O, ...].
        bits: 2 to 8.
        per_channel: a clip for each row of the weight.
    Returns:
        [], or [O, 1, ...]; a row of zeros has the clip 1.
    """
    rows = weight.detach().reshape(len(weight) if per_channel else 1, -1)
    largest = rows.abs().amax(1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    best, least = largest.clone(), torch.full_like(largest, math.inf)
    for share in _CLIPS.to(rows):
        clip = largest * share
        error = (quantize_uniform_weight(rows, clip, bits=bits) - rows).square().mean(1, keepdim=True)
        best, least = torch.where(error < least, clip, best), torch.minimum(error, least)
    return best.reshape(len(weight), *(1 for _ in weight.shape[1:])) if per_channel else best.reshape(())
