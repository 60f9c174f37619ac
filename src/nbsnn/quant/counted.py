"""Convolutions of quantized activations in 8-bit integers, which take half of the time of float32 on a CPU; for evaluation.

A quantized activation is a small integer times its step, and a quantized weight another one, so sums of their products are
integers times the product of both steps. 8-bit integers hold the factors, and the sums are exact; in float32 every sum is
rounded, in an order that depends on the machine. Nothing is assumed of the network between activation and convolution: the
numbers that arrive are looked at, and what are no such multiples, as the image, is convolved in float32.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nbsnn import fused

_WHOLE = 1e-3  # tolerance for a quantized weight divided by its step, computed in single precision, to be an integer
_PAIR = 2**15 - 1  # largest sum of two products: processors without instructions for 8-bit sums hold it in 16 bits
_SUM = 2**24  # float32 holds all integers up to this one
_MACHINES = ("x86_64", "AMD64")  # where this was measured

_CACHE: ContextVar[dict[Any, "_Integers"] | None] = ContextVar("weights as 8-bit integers", default=None)


@contextmanager
def convolutions_of_counts() -> Iterator[None]:
    """Context manager: in this thread, quantized convolutions without gradient run in 8-bit integers where that is exact.

    Do not write to a parameter while the context is open: the write may have no effect.
    """
    token = _CACHE.set({} if platform.machine() in _MACHINES else None)
    try:
        yield
    finally:
        _CACHE.reset(token)


def convolution_of_counts(layer: Any, x: Tensor) -> Tensor | None:
    """The output of a `QuantConv2d`, or None outside of the context, or if input or weight are not small integers.

    Images must lie channels last, as the output does.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return None
    cache = _CACHE.get()
    if cache is None or x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        return None
    if layer not in cache:
        cache[layer] = _Integers(layer)
    return cache[layer].convolve(x)


class _Integers:
    """A layer's weight as integers [O, I, h, w] and their steps [O], float64; packed for oneDNN at the first call."""

    def __init__(self, layer: Any) -> None:
        weight = layer.quantized_weight().detach().double()
        steps = layer.format.step(layer.by_output(layer.weight), layer.weight_scale)
        whole = (weight / steps).round()
        self.layer, self.whole, self.packed = layer, whole.float(), None
        self.steps = steps.expand(len(weight), 1, 1, 1).reshape(-1)
        largest, sums = float(whole.abs().max()), float(whole.abs().flatten(1).sum(1).max())
        self.most = int(min(255, _PAIR // max(2 * largest, 1), _SUM // max(sums, 1)))
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        self.fits = plain and largest <= 127 and float((weight / steps - whole).abs().max()) <= _WHOLE

    def convolve(self, x: Tensor) -> Tensor | None:
        """The convolution of x, or None if these are not counts."""
        found = fused.counts(x, self.most) if self.fits else None
        if found is None:
            return None
        counts, step = found
        scale = (self.steps * step).float()
        if self.packed is not None:
            return self._run(counts, scale)
        try:
            result = self._packed_run(counts, scale)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):  # not in this version or build of torch
            result = None
        self.fits = result is not None
        return result

    def _packed_run(self, counts: Tensor, scale: Tensor) -> Tensor | None:
        """The first convolution, compared with sums in float32, which are exact too; None if they differ."""
        layer = self.layer
        self.zeros = torch.zeros(len(scale), dtype=torch.int64)
        self.run = getattr(torch.ops.onednn, "qconv_pointwise", None) or torch.ops.onednn.qconv2d_pointwise
        self.packed = torch.ops.onednn.qconv_prepack(
            self.whole.to(torch.int8), torch.ones_like(scale), 1.0, 0, layer.stride, layer.padding, layer.dilation,
            layer.groups, list(counts.shape),
        )  # fmt: skip
        result = self._run(counts, scale)
        sums = F.conv2d(counts[:1].float(), self.whole, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        scale = scale.view(-1, 1, 1)
        wanted = sums * scale + (0 if layer.bias is None else layer.bias.view(-1, 1, 1))
        return result if bool(((result[:1] - wanted).abs() <= scale / 4).all()) else None

    def _run(self, counts: Tensor, scale: Tensor) -> Tensor:
        layer = self.layer
        result: Tensor = self.run(
            counts, 1.0, 0, self.packed, scale, self.zeros, layer.bias, layer.stride, layer.padding, layer.dilation,
            layer.groups, 1.0, 0, torch.float32, "none", [], "none",
        )  # fmt: skip
        return result
