"""Quantized forms of Conv2d, Linear and ReLU: thin shells over `quant.functional`, with the float layers' parameter names."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbsnn.quant.functional import (
    EdgeRange,
    QuantizedWeight,
    apot_weight,
    edge_weight,
    quantize_activation,
    quantize_edge_weight,
    quantize_weight,
)

INITIAL_WEIGHT_SCALE = 3.0  # in deviations of the weight (Li et al., ICLR 2020)
SMALLEST_SCALE = 1e-3  # thresholds and scales act as at least this much, so that a step too far cannot turn one negative


class _AtLeast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, floor: float) -> Tensor:
        return parameter.clamp_min(floor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def at_least(parameter: Tensor, floor: float = SMALLEST_SCALE) -> Tensor:
    """max(parameter, floor) with the identity as gradient, so that a parameter below the floor can come back."""
    result: Tensor = _AtLeast.apply(parameter, floor)  # type: ignore[no-untyped-call]
    return result


class WeightQuantizer(nn.Module):
    """What QuantConv2d and QuantLinear share: the quantized weight, computed once for each value of the parameters.

    The result is kept until autograd's version counter says that a parameter changed: once per optimizer step in training
    and once in all in evaluation. In-place edits through `.data` escape that counter; write `with torch.no_grad()` instead.
    """

    weight: Tensor
    weight_scale: nn.Parameter | None
    weight_bits: int
    edge_range: EdgeRange | None  # None for an inner (APoT) layer
    fixed: bool  # `weight` holds the quantized values themselves, as in a packed network; it is not trained

    def _quantized_by(self, bits: int, edge_range: EdgeRange | None, fixed: bool) -> None:
        self.weight_bits, self.edge_range, self.fixed = bits, edge_range, fixed
        self.weight.requires_grad_(self.weight.requires_grad and not fixed)
        scale = torch.tensor(INITIAL_WEIGHT_SCALE, dtype=self.weight.dtype, device=self.weight.device)
        self.weight_scale = None if edge_range else nn.Parameter(scale)
        self._kept: tuple[Any, QuantizedWeight | Tensor] | None = None

    def quantized_weight(self) -> Tensor:
        """The quantized weight, of the weight's shape; differentiable in training."""
        if self.fixed:
            return self.weight
        parameters = (self.weight,) if self.weight_scale is None else (self.weight, self.weight_scale)
        if torch.compiler.is_compiling():  # a graph holds the computation itself; the keeping below is for eager mode
            return self._differentiable(None)
        key = (self.weight_bits, self.edge_range, *((p._version, p.data_ptr(), p.dtype, p.device) for p in parameters))
        if self._kept is None or self._kept[0] != key:
            # A tensor made in inference mode could not serve a later training step.
            with torch.inference_mode(False):
                self._kept = (key, self._compute())
        known = self._kept[1]
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return self._differentiable(known)
        return known.values if isinstance(known, QuantizedWeight) else known

    def _compute(self) -> QuantizedWeight | Tensor:
        if self.weight_scale is None:
            return edge_weight(self.weight.detach(), bits=self.weight_bits, edge_range=self.edge_range or "max_abs")
        return apot_weight(self.weight.detach(), at_least(self.weight_scale).detach(), bits=self.weight_bits)

    def _differentiable(self, known: Any) -> Tensor:
        if self.weight_scale is None:
            edge_range = self.edge_range or "max_abs"
            return quantize_edge_weight(self.weight, bits=self.weight_bits, edge_range=edge_range, known=known)
        return quantize_weight(self.weight, at_least(self.weight_scale), bits=self.weight_bits, known=known)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def extra_repr(self) -> str:
        kind = "APoT" if self.edge_range is None else f"edge, {self.edge_range}"
        return f"{super().extra_repr()}, weight_bits={self.weight_bits} ({kind}{', fixed' if self.fixed else ''})"


def forget_quantized_weights_(model: nn.Module) -> None:
    """Let every layer compute its quantized weight anew when it is next asked for it."""
    for module in model.modules():
        if isinstance(module, WeightQuantizer):
            module._kept = None


class QuantConv2d(WeightQuantizer, nn.Conv2d):
    """A Conv2d whose weight is quantized; activations are the business of the layer before."""

    @classmethod
    def from_float(
        cls, conv: nn.Conv2d, *, bits: int, edge_range: EdgeRange | None = None, fixed: bool = False
    ) -> "QuantConv2d":
        """Take over the parameters of `conv` (not copied)."""
        layer = cls(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,  # type: ignore[arg-type]
            conv.groups, conv.bias is not None, conv.padding_mode, device="meta",
        )  # fmt: skip
        layer.weight, layer.bias, layer.training = conv.weight, conv.bias, conv.training
        layer._quantized_by(bits, edge_range, fixed)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        current: Tensor = self._conv_forward(x, self.quantized_weight(), self.bias)
        return current


class QuantLinear(WeightQuantizer, nn.Linear):
    """A Linear whose weight is quantized."""

    @classmethod
    def from_float(
        cls, linear: nn.Linear, *, bits: int, edge_range: EdgeRange | None = None, fixed: bool = False
    ) -> "QuantLinear":
        """Take over the parameters of `linear` (not copied)."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        layer.weight, layer.bias, layer.training = linear.weight, linear.bias, linear.training
        layer._quantized_by(bits, edge_range, fixed)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quantized_weight(), self.bias)


class QuantReLU(nn.Module):
    """ReLU clipped at a learnable threshold θ and rounded to 2^b − 1 steps.

    `tie_tolerance` (in steps, 0 at first) is set while this net is compared with an exact spiking one; see
    `nbsnn.measure_fidelity`. `inplace` says that the ReLU in its place overwrote its input; this one does not.
    """

    def __init__(self, bits: int, threshold: float | Tensor, *, inplace: bool = False) -> None:
        super().__init__()
        self.bits = bits
        self.inplace = inplace
        self.threshold = nn.Parameter(torch.as_tensor(threshold, dtype=torch.get_default_dtype()).detach().clone())
        self.tie_tolerance = 0.0

    @property
    def levels(self) -> int:
        """L = 2^b − 1: the largest count, and T when all layers agree."""
        return int(2**self.bits - 1)

    def forward(self, x: Tensor) -> Tensor:
        return quantize_activation(x, at_least(self.threshold), bits=self.bits, tolerance=self.tie_tolerance)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"
