"""Quantization without training: thresholds, weights and biases, one layer after the other, against the float network.

In one pass of some images through the quantized network, each module is fitted when its input arrives, with all earlier ones
fitted before. The input x is that of the quantized network and the target y the output of the same module of the float network,
as in BRECQ (Li et al., ICLR 2021), so later layers make up for the errors of earlier ones:

* a weight layer gets the weight, on the levels of its format, and the bias with the least E|Wx + b − y|², by learned rounding;
* a batch norm gets the weight and bias with the least error, and so the bias of the layer before it; its statistics stay;
* an activation gets the threshold with the least error.

Everything follows from moments of x and y at some thousand places of a layer: no gradient, no learning rate, no random number.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from nbsnn.errors import QuantizationError
from nbsnn.finite import check_finite
from nbsnn.hooks import hooked, input_of
from nbsnn.precision import full_float32
from nbsnn.progress import LayerProgress
from nbsnn.quant.functional import quantize_activation
from nbsnn.quant.layers import QuantReLU, WeightQuantizer
from nbsnn.quant.rounding import SecondMoments, learn_rounding
from nbsnn.surgery import evaluation_mode

logger = logging.getLogger(__name__)

_MOST_NUMBERS = 2**26  # of all images; more would not fit a laptop's memory
_PLACES = 2**14  # of a layer's output that are compared
_ACTIVATIONS = 2**17  # values of an activation that are compared
_RIDGE = 1.0  # how strongly a weight is held near the float one, in units of the mean square of its input
_NORM_RIDGE = 0.01
_THRESHOLDS = torch.linspace(1 / 60, 1, 60)  # candidates, in units of the largest value


@full_float32()
@torch.no_grad()
def reconstruct_(
    quantized: nn.Module,
    reference: nn.Module,
    images: Tensor,
    *,
    normed: Collection[str] = (),
    progress: LayerProgress | None = None,
) -> None:
    """Fit a quantized network, in place, to the float network that it was made from.

    Args:
        quantized: whose weights have the scale of the float ones; modes are restored.
        reference: the float network, with the same names of modules.
        images: [B, ...] on the device of both.
        normed: weight layers that a batch norm follows, which replaces their bias.
        progress: told the name of each fitted module, how many are fitted, and how many there are.
    Raises:
        QuantizationError: currents are not finite; names the module.
    """
    most = max(2, _MOST_NUMBERS // images[0].numel())
    if len(images) > most:
        logger.warning("the first %d of %d images are used: the activations of all need too much memory", most, len(images))
    modules = {name: m for name, m in quantized.named_modules() if isinstance(m, (WeightQuantizer, _BatchNorm, QuantReLU))}
    targets = _targets(reference, modules, images[:most])
    total = len(targets)

    def fit(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            if name not in targets:  # not called once
                return
            x, y = input_of(args, kwargs), targets.pop(name)
            check_finite(f"the input of {name}", x, QuantizationError, remedy="normalize the images")
            if isinstance(module, QuantReLU):
                _fit_threshold_(module, x, y)
            elif isinstance(module, WeightQuantizer):
                _fit_weight_(module, x, y, free=module.bias is not None or name in normed)
            elif isinstance(module, _BatchNorm):
                _fit_norm_(module, x, y)
            if progress is not None:
                progress(name, total - len(targets), total)

        return hook

    with evaluation_mode(quantized), hooked(
        module.register_forward_pre_hook(fit(name, module), with_kwargs=True) for name, module in modules.items()
    ):  # fmt: skip
        quantized(images[:most])


def _targets(reference: nn.Module, fitted: Mapping[str, nn.Module], images: Tensor) -> dict[str, Tensor]:
    """Outputs of the float network's modules at the places that are compared; of modules that are called once."""
    found: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            taken = _values(output) if isinstance(fitted[name], QuantReLU) else _rows(output, fitted[name])
            found.setdefault(name, []).append(taken)

        return hook

    with evaluation_mode(reference), hooked(reference.get_submodule(n).register_forward_hook(keep(n)) for n in fitted):
        reference(images)
    return {name: taken[0] for name, taken in found.items() if len(taken) == 1}


# ------------------------------------------------------------------------------------------------------------- one module


def _fit_weight_(layer: WeightQuantizer, x: Tensor, y: Tensor, *, free: bool) -> None:
    """The weight and bias of least error, from the input x and rows y [P, O] of the float output."""
    assert isinstance(layer, (_ConvNd, nn.Linear))
    if isinstance(layer, _ConvTransposeNd):  # nearest levels, and the bias alone
        if layer.bias is not None:
            layer.bias += y.mean(0) - _rows(layer(x), layer).mean(0)
        return
    inputs = _patches(layer, x)
    groups = inputs.shape[1]
    moments = SecondMoments.of(inputs, y.view(len(y), groups, -1), centred=free)
    weight = moments.best_weight(layer.weight.reshape(groups, -1, inputs.shape[2]), _RIDGE)
    fmt, shape = layer.format, layer.weight.shape
    if fmt.rounds:
        values, unit = learn_rounding(weight, moments.held(_RIDGE), fmt, shape)
        found = fmt.float_weight(values, unit)
        if found is not None:
            layer.weight.copy_(found[0])
            if layer.weight_scale is not None and found[1] is not None:
                layer.weight_scale.copy_(found[1])
    else:
        layer.weight.copy_(weight.reshape(shape))
    if layer.bias is not None:
        layer.bias.copy_(moments.bias(layer.quantized_weight().reshape(weight.shape)).flatten())


def _fit_norm_(norm: _BatchNorm, x: Tensor, y: Tensor) -> None:
    """The weight and bias of least error; y [P, C] are rows of the float output."""
    if norm.running_var is None or norm.running_mean is None or not norm.affine:
        return
    rows = _rows(x, norm)
    mean, target = rows.mean(0), y.mean(0)
    variance, common = (rows - mean).square().mean(0), ((rows - mean) * (y - target)).mean(0)
    spread = (norm.running_var + norm.eps).sqrt()
    gain = norm.weight / spread
    tiny = torch.finfo(variance.dtype).tiny
    gain = gain + (common - gain * variance) / (variance * (1 + _NORM_RIDGE)).clamp_min(tiny) * (variance > tiny)
    norm.weight.copy_(gain * spread)
    norm.bias.copy_(target + gain * (norm.running_mean - mean))


def _fit_threshold_(act: QuantReLU, x: Tensor, y: Tensor) -> None:
    """The threshold of least error between the quantized activation and values y of the float one."""
    values, largest = _values(x), y.max()
    if not bool(largest > 0):
        return
    thresholds = largest * _THRESHOLDS.to(values)
    errors = [(quantize_activation(values, t, bits=act.bits) - y).square().mean() for t in thresholds]
    act.threshold.copy_(thresholds[torch.stack(errors).argmin()])


# ----------------------------------------------------------------------------------------------------------------- places


def _values(x: Tensor) -> Tensor:
    """Some values of a tensor, evenly spaced, as a copy."""
    flat = x.flatten()
    return flat[:: max(1, flat.numel() // _ACTIVATIONS)].clone()


def _rows(x: Tensor, module: nn.Module) -> Tensor:
    """[P, C]: the channels of a tensor at the places that are compared."""
    rows = x.flatten(0, -2) if isinstance(module, nn.Linear) else x.movedim(1, -1).flatten(0, -2)
    return rows[_places(len(rows), x.device)]


def _places(count: int, device: torch.device) -> Tensor:
    """Indices of some of all images' places, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, _PLACES), dtype=torch.float64, device=device).round().long()


def _patches(layer: _ConvNd | nn.Linear, x: Tensor) -> Tensor:
    """[P, G, D]: what a layer's weights read at the places that are compared."""
    if isinstance(layer, nn.Linear):
        return _rows(x, layer)[:, None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    kernel, stride, dilation = ((1, *size)[-2:] for size in (layer.kernel_size, layer.stride, layer.dilation))
    if x.dim() == 3:  # a line is an image of one row
        x = x[:, :, None]
    sizes = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)]
    each = sizes[0] * sizes[1]
    places = _places(len(x) * each, x.device)
    parts = []
    for index, image in enumerate(x):
        here = places[(places >= index * each) & (places < (index + 1) * each)] - index * each
        columns = F.unfold(image[None], kernel, dilation, 0, stride)[0]
        parts.append(columns[:, here].T.reshape(len(here), layer.groups, -1))
    return torch.cat(parts)
