"""Initial thresholds and weight scales: those of least squared error between values and their quantized form."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.errors import QuantizationError
from nbsnn.finite import check_finite, check_network
from nbsnn.hooks import hooked, input_of
from nbsnn.norms import recalibrate_norms_
from nbsnn.precision import full_float32
from nbsnn.quant.functional import quantize_activation
from nbsnn.quant.layers import QuantReLU, WeightQuantizer
from nbsnn.surgery import evaluation_mode

_SAMPLES = 32_768  # values of one activation that the search uses
_CANDIDATES = 48
_CHUNK = 128  # images in one forward pass


def least_error_threshold(x: Tensor, bits: int) -> Tensor:
    """The threshold θ with the least mean squared error between ReLU(x) and its b-bit form.

    Args:
        x: currents, any shape; at most 32,768 of them, evenly spaced, are used.
        bits: b.
    Returns:
        Scalar θ > 0. Currents without a positive value give the threshold for unit variance.
    """
    flat = x.detach().flatten()
    sample = flat[:: max(1, flat.numel() // _SAMPLES)].clamp_min(0)
    largest = sample.max()
    if not bool(largest > 0):
        return torch.full_like(largest, half_normal_threshold(bits))
    thresholds = largest * torch.linspace(1 / _CANDIDATES, 1, _CANDIDATES).to(sample)
    with torch.no_grad():
        errors = [(quantize_activation(sample, t, bits=bits) - sample).square().mean() for t in thresholds]
    return thresholds[torch.stack(errors).argmin()].clone()


@cache
def half_normal_threshold(bits: int) -> float:
    """The threshold for currents of mean 0 and variance 1: the output of batch norm before training."""
    quantiles = torch.special.ndtri((torch.arange(_SAMPLES, dtype=torch.float64) + 0.5) / _SAMPLES)
    return round(float(least_error_threshold(quantiles, bits)), 3)


@torch.no_grad()
def refit_scales_(quantized: nn.Module) -> None:
    """Set every weight scale to the one of least error: a scale learned with more bits is too large for fewer.

    Raises:
        QuantizationError: a weight is not finite.
    """
    check_network(quantized, QuantizationError)
    for module in quantized.modules():
        if not isinstance(module, WeightQuantizer) or module.weight_scale is None or module.fixed:
            continue
        best = module.format.best_scale(module.by_output(module.weight))
        if best is not None:
            module.weight_scale.copy_(best)


@full_float32()
@torch.no_grad()
def calibrate_(quantized: nn.Module, images: Tensor, *, norms: bool = True) -> None:
    """Initialize thresholds from data, layer by layer, with all earlier layers quantized.

    Args:
        quantized: changed in place; its training mode is restored.
        norms: recalibrate batch norm in the same pass if weights are quantized: normalized weights change the scale of the
            currents.
        images: [B, C, H, W]; the first chunk of about 128 determines the thresholds, all images the statistics.
    Raises:
        QuantizationError: currents are not finite, although weights and images are; names the activation.
    """
    # Chunks of similar size: a last one of a single image would have no variance.
    chunks = torch.tensor_split(images, max(1, round(len(images) / _CHUNK)))
    acts = {module: name for name, module in quantized.named_modules() if isinstance(module, QuantReLU)}

    def start_threshold(act: nn.Module, args: Any, kwargs: Any) -> None:
        assert isinstance(act, QuantReLU)
        current = input_of(args, kwargs)
        check_finite(f"the current of {acts[act]}", current, QuantizationError, remedy="normalize the images")
        act.threshold.copy_(least_error_threshold(current.clamp(max=act.limit) if act.limit else current, act.bits))

    def the_first_starts_thresholds() -> Iterator[Tensor]:
        for chunk in chunks:
            yield chunk
            for handle in handles:
                handle.remove()

    with hooked(act.register_forward_pre_hook(start_threshold, with_kwargs=True) for act in acts) as handles:
        if norms and any(isinstance(m, WeightQuantizer) for m in quantized.modules()):
            recalibrate_norms_(quantized, the_first_starts_thresholds())
        else:
            with evaluation_mode(quantized):
                quantized(chunks[0])
