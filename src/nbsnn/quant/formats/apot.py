"""Additive powers of two (Li, Dong & Wang, ICLR 2020): the format of inner layers."""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from nbsnn.quant.formats.base import WeightFormat
from nbsnn.quant.functional import apot_nearest, apot_unit, apot_weight, at_least, quantize_weight
from nbsnn.quant.levels import WEIGHT_BITS, apot_levels, apot_numerators, normalised_weights
from nbsnn.sums import moments

INITIAL_SCALE = 3.0  # in deviations of the weight (Li et al., ICLR 2020)
_SAMPLES = 32_768  # entries of a weight that the search for a scale uses
_SCALES = torch.linspace(0.5, 4.0, 71)  # candidates, in deviations of the weight


@dataclass(frozen=True)
class Apot(WeightFormat):
    """A code is the index of a level, with the sign as the highest bit; `weight_scale` is the clip of the normalised weight.

    Attributes:
        own_scale: the quantized weight has the scale of the float one, for layers that no batch norm follows.
    """

    own_scale: bool = False

    name: ClassVar[str] = "apot"
    widths: ClassVar[tuple[int, ...]] = WEIGHT_BITS

    @classmethod
    def for_layer(cls, bits: int, *, normed: bool, scale: str | None = None) -> Self:
        return cls(bits, own_scale=not normed)

    @property
    def denominator(self) -> int:
        return apot_numerators(self.bits)[-1]

    @property
    def label(self) -> str:
        return "APoT, own scale" if self.own_scale else "APoT"

    def first_scale(self, weight: Tensor) -> Tensor:
        # No batch norm would compensate for a wrong gain, so start from the best scale.
        fitted = self.own_scale and not self.fixed and not weight.is_meta
        return self.best_scale(weight) if fitted else torch.full((), INITIAL_SCALE, dtype=weight.dtype, device=weight.device)

    def best_scale(self, weight: Tensor) -> Tensor:
        return least_error_scale(weight, self.bits, own_scale=self.own_scale)

    def quantize(self, weight: Tensor, scale: Tensor | None) -> Tensor:
        assert scale is not None
        return quantize_weight(weight, at_least(scale), bits=self.bits, own_scale=self.own_scale)

    def measure_unit(self, weight: Tensor, scale: Tensor | None) -> Tensor:
        assert scale is not None
        return apot_unit(weight, at_least(scale.detach()), own_scale=self.own_scale)

    def rounded(self, weight: Tensor, unit: Tensor) -> Tensor:
        return apot_nearest(weight / unit, bits=self.bits) * unit

    def float_weight(self, values: Tensor, unit: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.own_scale:
            return _of_own_scale(values, unit)
        codes, scale = self.codes(values, unit), at_least(unit)
        within = normalised_weights(codes, bits=self.bits, deviation=1 / float(scale))
        return None if within is None else ((within * scale.double()).to(values), unit.clone())

    def codes(self, values: Tensor, unit: Tensor) -> Tensor:
        numerators = torch.tensor(apot_numerators(self.bits), device=values.device)
        whole = (values.abs() / unit * self.denominator).round().long()
        codes: Tensor = torch.searchsorted(numerators, whole) + torch.signbit(values) * 2 ** (self.bits - 1)
        return codes

    def values(self, codes: Tensor, unit: Tensor) -> Tensor:
        half = 2 ** (self.bits - 1)
        unit = unit if self.own_scale else at_least(unit)  # files hold scales below the floor, which act as the floor
        sign = torch.where(codes >= half, -1.0, 1.0).to(unit)
        return apot_levels(self.bits).to(unit)[codes % half].copysign(sign) * unit

    def header(self) -> dict[str, Any]:
        if self.own_scale:
            return super().header()
        return {"bits": self.bits, "edge_range": None, "fixed": self.fixed}  # as files have held it from the first version


@torch.no_grad()
def least_error_scale(weight: Tensor, bits: int, *, own_scale: bool = False) -> Tensor:
    """The weight scale with the least mean squared error between the normalised weight and its b-bit form.

    Args:
        weight: any shape; at most 32,768 of its entries, evenly spaced, are used.
        bits: b, 2 to 5.
        own_scale: as for `quantize_weight`.
    Returns:
        Scalar between 0.5 and 4 standard deviations; 1.2 for normally distributed weights and 2 bits.
    """
    flat = weight.detach().flatten()
    sample = flat[:: max(1, flat.numel() // _SAMPLES)]
    errors = []
    for scale in _SCALES.to(sample):
        values, mean, deviation = apot_weight(sample, scale, bits=bits, own_scale=own_scale)
        unit = (sample - mean) / deviation
        errors.append(((values / deviation if own_scale else values) - unit).square().mean())
    return _SCALES.to(sample)[torch.stack(errors).argmin()].clone()


def _of_own_scale(values: Tensor, unit: Tensor) -> tuple[Tensor, Tensor] | None:
    """The values, and the scale s that gives the unit with their root mean square r: s · r = unit after rounding.

    Zeros alone are replaced by small numbers of their signs. If there is no such s, r is changed by a few units in its last
    place.
    """
    start = values if bool(values.any()) else torch.copysign(unit / 2**10, values)  # far within the cell of 0
    for stretch in torch.arange(-8, 9).abs().argsort(stable=True).tolist():
        weight = start * (1 + (stretch - 8) * 1e-6)
        r = moments(weight).root_mean_square.to(values.dtype)
        for scale in (unit / r, *(torch.nextafter(unit / r, torch.full_like(unit, end)) for end in (0.0, torch.inf))):
            if torch.equal(scale * r, unit):
                return weight, scale
    return None
