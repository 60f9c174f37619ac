"""How each torch function between two activations is read as an affine function: one short reader per kind."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nbsnn.integer import shaping
from nbsnn.integer.affine import Affine, NoForm, Synapse, added, convolved, scaled, shifted
from nbsnn.integer.calls import Context, Reader, arguments, pair, shape_of
from nbsnn.quant.layers import WeightQuantizer
from nbsnn.quant.operations import DROPOUT

_WHOLE = 1e-3  # tolerance for a quantized weight divided by its step, computed in single precision, to be an integer

# -------------------------------------------------------------------------------------------------------------- weights


def integer_weight(layer: WeightQuantizer | None, weight: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Integers [shape of the weight] float64 and the step of each row [O]; or the weight, steps of 1 and False."""
    values = weight.detach().double()
    ones = values.new_ones(len(values))
    if layer is None or weight.shape != layer.weight.shape:
        return values, ones, False
    step = layer.format.step(layer.weight, layer.weight_scale)
    whole = (values / step).round()
    if float((values / step - whole).abs().max()) > _WHOLE:
        return values, ones, False
    return whole, step.flatten() * ones, True


def _convolution(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
    given = arguments("input weight bias stride padding dilation groups", args, kwargs,
                       bias=None, stride=1, padding=0, dilation=1, groups=1)  # fmt: skip
    x = context.input(args, kwargs)
    dilation, size = pair(given["dilation"]), given["weight"].shape[2:]
    padding = given["padding"]
    if isinstance(padding, str):
        spans = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, size, strict=True)]
        if any(span % 2 for span in spans):
            raise NoForm("padding='same' is not symmetric for an even kernel", "use an odd kernel, or padding in numbers")
        padding = [span // 2 for span in spans]
    weight, step, integral = integer_weight(context.layer, given["weight"])
    synapse = Synapse(context.place, weight, integral, pair(given["stride"]), pair(padding), dilation, int(given["groups"]))
    return _with_bias(convolved(x, synapse, step=step, shape=shape_of(context.result), values=context.values), given["bias"])


def _linear(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
    given = arguments("input weight bias", args, kwargs, bias=None)
    x = context.input(args, kwargs)
    if len(x.shape) != 1:
        raise NoForm(f"a linear layer works along the last of the axes {list(x.shape)}", "flatten first, or use nn.Conv2d")
    weight, step, integral = integer_weight(context.layer, given["weight"])
    synapse = Synapse(context.place, weight, integral)
    return _with_bias(convolved(x, synapse, step=step, shape=shape_of(context.result), values=context.values), given["bias"])


def _with_bias(x: Affine, bias: Tensor | None) -> Affine:
    return x if bias is None else shifted(x, bias.detach().double())


def _batch_norm(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
    given = arguments("input running_mean running_var weight bias training momentum eps", args, kwargs,
                       weight=None, bias=None, eps=1e-5)  # fmt: skip
    x = context.input(args, kwargs)
    gain = (given["running_var"].double() + given["eps"]).rsqrt()
    if given["weight"] is not None:
        gain = gain * given["weight"].detach().double()
    shift = -given["running_mean"].double() * gain
    return _with_bias(shifted(scaled(x, gain), shift), given["bias"])


# ------------------------------------------------------------------------------------------------------ sums and products


def _constant(value: Any, x: Affine) -> Tensor:
    """A number or tensor as one number per channel, [C] float64."""
    if not isinstance(value, Tensor):
        return torch.full((x.channels,), float(value), dtype=torch.float64)
    aligned = value.detach().double()
    aligned = aligned.reshape(*(1 for _ in range(len(x.shape) + 1 - value.dim())), *value.shape)
    if any(n != 1 for n in aligned.shape[2:]) or aligned.shape[0] != 1:
        raise NoForm(f"a constant of shape {list(value.shape)} differs from place to place", "use one number per channel")
    return aligned.reshape(-1).expand(x.channels)


def _sum(sign: float, *, reverse: bool = False) -> Reader:
    def read(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
        given = arguments("input other", args, kwargs, alpha=1)
        factors = [1.0, sign * float(given["alpha"])]
        if reverse:
            factors = [-1.0, 1.0] if sign < 0 else [1.0, 1.0]
        sides = [(context.of(given[key]), given[key], f) for key, f in zip(("input", "other"), factors, strict=True)]
        forms = [scaled(a, torch.full((a.channels,), f, dtype=torch.float64)) for a, _, f in sides if a is not None]
        if len(forms) == 2:
            return added(*forms)
        constant, factor = next((value, f) for a, value, f in sides if a is None)
        _check_shape(context, forms[0])
        return shifted(forms[0], factor * _constant(constant, forms[0]))

    return read


def _product(*, divide: bool = False) -> Reader:
    def read(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
        given = arguments("input other", args, kwargs)
        x, constant = context.of(given["input"]), given["other"]
        if x is None:
            x, constant = context.of(given["other"]), given["input"]
        assert x is not None
        _check_shape(context, x)
        factor = _constant(constant, x)
        return scaled(x, 1 / factor if divide else factor)

    return read


def _negative(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
    x = context.input(args, kwargs)
    return scaled(x, torch.full((x.channels,), -1.0, dtype=torch.float64))


def _check_shape(context: Context, x: Affine) -> None:
    if shape_of(context.result) != x.shape:
        raise NoForm("a current is broadcast to a larger shape", "give both operands one shape")


READERS: dict[str, Reader] = {
    "conv2d": _convolution, "linear": _linear, "batch_norm": _batch_norm,
    **dict.fromkeys(("add", "iadd", "radd"), _sum(1.0)),
    **dict.fromkeys(("sub", "isub", "subtract"), _sum(-1.0)), "rsub": _sum(-1.0, reverse=True),
    **dict.fromkeys(("mul", "imul", "rmul", "multiply"), _product()),
    **dict.fromkeys(("div", "truediv", "itruediv", "divide"), _product(divide=True)),
    "neg": _negative, "avg_pool2d": shaping.average_pool, "adaptive_avg_pool2d": shaping.adaptive_pool,
    "mean": shaping.reduction(mean=True), "sum": shaping.reduction(mean=False),
    **dict.fromkeys(("cat", "concat", "concatenate"), shaping.concatenation),
    **dict.fromkeys(("flatten", "reshape", "view", "squeeze"), shaping.reshape),
    **dict.fromkeys(("getitem", "chunk", "split", "narrow", "index_select", "channel_shuffle", "pad"), shaping.selection),
    **dict.fromkeys(("contiguous", "clone", "detach", "to", "float", "double", "type", "data"), shaping.unchanged),
    **dict.fromkeys(DROPOUT, shaping.unchanged),
}  # fmt: skip
