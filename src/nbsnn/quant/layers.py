"""Quantized forms of convolutions, Linear and ReLU: thin shells over weight formats and `quant.functional`, with the parameter
names of the float layers.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbsnn.quant.counted import convolution_of_counts
from nbsnn.quant.formats import WeightFormat
from nbsnn.quant.functional import at_least, quantize_activation

FIXED_WEIGHTS = (
    "the weights of a packed network are fixed: only norms, biases and thresholds train; for weights that train too, load "
    "it with load_checkpoint(..., trainable=True), or call nbsnn.unpack(network)"
)


class WeightQuantizer(nn.Module):
    """Base class of quantized weight layers, with a weight that `format` quantizes by its output channels.

    Each forward pass quantizes the weight, so every write to the parameters takes effect; see `quantized_once`.
    """

    weight: Tensor
    weight_scale: nn.Parameter | None
    format: WeightFormat

    def _quantized_by(self, weight_format: WeightFormat) -> None:
        self.format = weight_format
        self.weight.requires_grad_(self.weight.requires_grad and not weight_format.fixed)
        scale = weight_format.first_scale(self.by_output(self.weight.detach()))
        self.weight_scale = None if scale is None else nn.Parameter(scale, requires_grad=not weight_format.fixed)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, as for any module; warns that fixed weights are not trained."""
        if mode and self.fixed:
            warnings.warn(FIXED_WEIGHTS, stacklevel=1)
        return super().train(mode)

    @property
    def weight_bits(self) -> int:
        return self.format.bits

    @property
    def fixed(self) -> bool:
        """`weight` holds the quantized values themselves, as in a packed network; it is not trained."""
        return self.format.fixed

    def by_output(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape with the output channels first, [O, ...], as formats take it."""
        return weight

    def as_stored(self, weight: Tensor) -> Tensor:
        """The inverse of `by_output`."""
        return weight

    def unit(self) -> Tensor:
        """The unit of the weight; see `WeightFormat`."""
        return self.format.unit(self.by_output(self.weight), self.weight_scale)

    def _quantize(self) -> Tensor:
        return self.as_stored(self.format.quantize(self.by_output(self.weight), self.weight_scale))

    def quantized_weight(self) -> Tensor:
        """The quantized weight, of the weight's shape; differentiable in training."""
        if self.fixed:
            return self.weight
        cached = None if torch.compiler.is_compiling() or torch.is_grad_enabled() else _CACHE.get().get(self)
        if cached is None:
            return self._quantize()
        source = (self.weight, self.weight_scale, self.format)
        if not cached.is_made_from(source):
            cached.source, cached.values = source, self._quantize()
        return cached.values

    def extra_repr(self) -> str:
        kind = f"{self.format.label}{', fixed' if self.fixed else ''}"
        return f"{super().extra_repr()}, weight_bits={self.weight_bits} ({kind})"


class _Cached:
    """A quantized weight, and the tensors that it was computed from."""

    source: tuple[object, ...] = ()
    values: Tensor

    def is_made_from(self, source: tuple[object, ...]) -> bool:
        """Whether these are the same objects at the same addresses: `.to()` changes a parameter in place."""
        weight = source[0]
        assert isinstance(weight, Tensor)
        same = len(self.source) == len(source) and all(a is b for a, b in zip(self.source, source, strict=True))
        return same and (self.values.device, self.values.dtype) == (weight.device, weight.dtype)


_NOTHING: Mapping[nn.Module, _Cached] = MappingProxyType({})
_CACHE: ContextVar[Mapping[nn.Module, _Cached]] = ContextVar("quantized weights", default=_NOTHING)


@contextmanager
def quantized_once(*networks: nn.Module) -> Iterator[None]:
    """Context manager: in this thread, layers of these networks quantize weights once for several passes without gradient.

    Do not write to a parameter while the context is open: the write may have no effect. Outside of the context nothing is
        cached.
    """
    layers = [module for network in networks for module in network.modules() if isinstance(module, WeightQuantizer)]
    token = _CACHE.set({**{layer: _Cached() for layer in layers}, **_CACHE.get()})
    try:
        yield
    finally:
        _CACHE.reset(token)


class _QuantConv(WeightQuantizer, nn.modules.conv._ConvNd):
    """What the convolutions below share: the parameters of a float layer, and a quantized weight in each call."""

    @classmethod
    def from_float(cls, conv: nn.modules.conv._ConvNd, weight_format: WeightFormat) -> Self:
        """Take over the parameters of `conv` (not copied)."""
        options = {key: getattr(conv, key) for key in ("stride", "padding", "dilation", "groups", "padding_mode")}
        if conv.transposed:
            options["output_padding"] = conv.output_padding
        layer = cls(conv.in_channels, conv.out_channels, conv.kernel_size, bias=conv.bias is not None, device="meta", **options)  # type: ignore[call-arg]
        layer.weight, layer.bias, layer.training = conv.weight, conv.bias, conv.training
        layer._quantized_by(weight_format)
        return layer


class QuantConv1d(_QuantConv, nn.Conv1d):
    """A Conv1d whose weight is quantized."""

    def forward(self, input: Tensor) -> Tensor:
        current: Tensor = self._conv_forward(input, self.quantized_weight(), self.bias)
        return current


class QuantConv2d(_QuantConv, nn.Conv2d):
    """A Conv2d whose weight is quantized; its input is quantized by the activation before it."""

    def forward(self, input: Tensor) -> Tensor:
        current = convolution_of_counts(self, input)
        if current is None:
            current = self._conv_forward(input, self.quantized_weight(), self.bias)
        return current


class _QuantTransposed(_QuantConv):
    """A transposed convolution, whose weight [I, O/groups, ...] is quantized by output channels like others."""

    def by_output(self, weight: Tensor) -> Tensor:
        return by_output(weight, self.groups)

    def as_stored(self, weight: Tensor) -> Tensor:
        return by_output(weight, self.groups)  # the same exchange of axes within each group

    def _current(self, function: Any, input: Tensor, output_size: list[int] | None) -> Tensor:
        dims = len(self.kernel_size)
        padding = self._output_padding(  # type: ignore[operator]
            input, output_size, self.stride, self.padding, self.kernel_size, dims, self.dilation
        )
        current: Tensor = function(
            input, self.quantized_weight(), self.bias, self.stride, self.padding, padding, self.groups, self.dilation
        )
        return current


class QuantConvTranspose1d(_QuantTransposed, nn.ConvTranspose1d):
    """A ConvTranspose1d whose weight is quantized."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self._current(F.conv_transpose1d, input, output_size)


class QuantConvTranspose2d(_QuantTransposed, nn.ConvTranspose2d):
    """A ConvTranspose2d whose weight is quantized."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return self._current(F.conv_transpose2d, input, output_size)


def by_output(weight: Tensor, groups: int) -> Tensor:
    """The weight [I, O/groups, ...] of a transposed convolution as [O, I/groups, ...]; its own inverse."""
    rows, per_group = weight.shape[:2]
    parts = weight.reshape(groups, rows // groups, per_group, *weight.shape[2:])
    return parts.transpose(1, 2).reshape(groups * per_group, rows // groups, *weight.shape[2:])


class QuantLinear(WeightQuantizer, nn.Linear):
    """A Linear whose weight is quantized."""

    @classmethod
    def from_float(cls, linear: nn.Linear, weight_format: WeightFormat) -> "QuantLinear":
        """Take over the parameters of `linear` (not copied)."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        layer.weight, layer.bias, layer.training = linear.weight, linear.bias, linear.training
        layer._quantized_by(weight_format)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.quantized_weight(), self.bias)


QUANTIZED_FORMS: dict[type[nn.Module], Any] = {
    nn.Conv1d: QuantConv1d, nn.Conv2d: QuantConv2d, nn.ConvTranspose1d: QuantConvTranspose1d,
    nn.ConvTranspose2d: QuantConvTranspose2d, nn.Linear: QuantLinear,
}  # fmt: skip
WEIGHTS = tuple(QUANTIZED_FORMS)  # weight layers that have a quantized form


class QuantReLU(nn.Module):
    """ReLU clipped at a learnable threshold θ and rounded to 2^b − 1 steps.

    `tie_tolerance` (in steps, initially 0) is set while this net is compared with an exact spiking one; see
    `nbsnn.measure_fidelity`. `inplace` records that the original ReLU overwrote its input; this module does not. `limit` is
    that of a `ClippedReLU`, above which no threshold has an effect.
    """

    def __init__(self, bits: int, threshold: float | Tensor, *, inplace: bool = False, limit: float | None = None) -> None:
        super().__init__()
        self.bits = bits
        self.inplace, self.limit = inplace, limit
        self.threshold = nn.Parameter(torch.as_tensor(threshold, dtype=torch.get_default_dtype()).detach().clone())
        self.tie_tolerance = 0.0

    @property
    def levels(self) -> int:
        """L = 2^b − 1: the largest count, and T if all layers have the same bits."""
        return int(2**self.bits - 1)

    def clip(self) -> Tensor:
        """Scalar: the threshold in effect, which is positive and at most `limit`."""
        return at_least(self.threshold, most=self.limit)

    def forward(self, input: Tensor) -> Tensor:
        return quantize_activation(input, self.clip(), bits=self.bits, tolerance=self.tie_tolerance)

    def extra_repr(self) -> str:
        return f"bits={self.bits}" if self.limit is None else f"bits={self.bits}, limit={self.limit:g}"
