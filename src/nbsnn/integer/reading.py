"""How each torch function between two activations is read as an affine function: one short reader per kind."""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from nbsnn.integer import maxima, shaping
from nbsnn.integer.affine import Affine, NoForm, Synapse, added, convolved, scaled, shifted
from nbsnn.integer.arrangement import Arrangement, Form, added_up, arranged, by_tokens, chosen, multiplied, simplest
from nbsnn.integer.calls import Context, Reader, arguments, pair, shape_of
from nbsnn.integer.maps import AxisMap, PlaneMap
from nbsnn.integer.nodes import Pair
from nbsnn.integer.placing import resampled
from nbsnn.integer.turning import turning
from nbsnn.quant.layers import WeightQuantizer, by_output
from nbsnn.quant.operations import ARRANGING, DROPOUT
from nbsnn.shapes import per_channel, plane

_WHOLE = 1e-3  # tolerance for a quantized weight divided by its step, computed in single precision, to be an integer

# -------------------------------------------------------------------------------------------------------------- weights


def integer_weight(layer: WeightQuantizer | None, weight: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Integers [O, ...] float64 and the step of each row [O]; or the weight, steps of 1 and False."""
    values = weight.detach().double()
    ones = values.new_ones(len(values))
    if layer is None or not _is_weight_of(layer, weight):
        return values, ones, False
    values = layer.by_output(values)
    step = layer.format.step(layer.by_output(layer.weight), layer.weight_scale)
    ones = values.new_ones(len(values))
    scaled = values / step
    whole = scaled.round()
    if float(scaled.sub_(whole).abs_().max()) > _WHOLE:  # in place: a large layer takes gigabytes
        return values, ones, False
    return whole, step.flatten() * ones, True


def _is_weight_of(layer: WeightQuantizer, weight: Tensor) -> bool:
    """Whether a weight is a layer's own, or that with rows and columns exchanged (`integer.turning`)."""
    return weight.shape == layer.weight.shape or (weight.dim() == 4 and weight.mT.shape == layer.weight.shape)


def _convolution(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
    given = arguments("input weight bias stride padding dilation groups", args, kwargs,
                       bias=None, stride=1, padding=0, dilation=1, groups=1)  # fmt: skip
    x = context.input(args, kwargs)
    weight, step, integral = integer_weight(context.layer, given["weight"])
    lines = weight.dim() == 3
    weight = weight.unsqueeze(2) if lines else weight
    stride, dilation = (_sides(given[key], 1, lines) for key in ("stride", "dilation"))
    padding = given["padding"]
    if isinstance(padding, str):
        spans = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(span % 2 for span in spans):
            x, spans = _padded(context, x, [(span // 2, span - span // 2) for span in spans]), [0, 0]
        padding = tuple(span // 2 for span in spans)
    else:
        padding = _sides(padding, 0, lines)
    synapse = Synapse(context.place, weight, integral, stride, padding, dilation, int(given["groups"]))
    return _with_bias(convolved(x, synapse, step=step, shape=shape_of(context.result), values=context.values), given["bias"])


def _sides(value: Any, alone: int, lines: bool) -> Pair:
    """The numbers of rows and columns; lines have one row, for which it is `alone`."""
    return (alone, pair(value)[0]) if lines else pair(value)


def _padded(context: Context, x: Affine, sides: list[Pair]) -> Affine:
    """x with zeros before and after each side."""
    size = plane(x.shape)[1:]
    axes = [
        AxisMap.choosing(torch.cat([torch.full((a,), -1), torch.arange(n), torch.full((b,), -1)]), n)
        for (a, b), n in zip(sides, size, strict=True)
    ]
    places = [axis.places for axis in axes][3 - len(x.shape) :]
    return resampled(x, context.values, PlaneMap(*axes), divisor=1, shape=(x.channels, *places))


def _transposed_convolution(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
    """An ordinary convolution with the kernel turned around, of places spread apart by the stride."""
    given = arguments("input weight bias stride padding output_padding groups dilation", args, kwargs,
                       bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1)  # fmt: skip
    x, groups = context.input(args, kwargs), int(given["groups"])
    layer = context.layer if context.layer is not None and _is_weight_of(context.layer, given["weight"]) else None
    values = given["weight"] if layer is not None else by_output(given["weight"], groups)
    weight, step, integral = integer_weight(layer, values)
    lines = weight.dim() == 3
    weight = (weight.unsqueeze(2) if lines else weight).flip(2, 3)
    stride, dilation, padding = (_sides(given[key], n, lines) for key, n in (("stride", 1), ("dilation", 1), ("padding", 0)))
    places = plane(shape_of(context.result))[1:]
    sides = zip(plane(x.shape)[1:], places, weight.shape[2:], stride, padding, dilation, strict=True)
    spread = PlaneMap(*(_spread(n, m + d * (k - 1), s, d * (k - 1) - p) for n, m, k, s, p, d in sides))
    shape = (x.channels, *spread.places[3 - len(x.shape) :])
    apart = resampled(x, context.values, spread, divisor=1, shape=shape)
    synapse = Synapse(context.place, weight, integral, dilation=dilation, groups=groups)
    return _with_bias(
        convolved(apart, synapse, step=step, shape=shape_of(context.result), values=context.values), given["bias"]
    )


def _spread(size: int, places: int, stride: int, first: int) -> AxisMap:
    """Places `stride` apart, the first at `first`, with zeros between."""
    at = first + stride * torch.arange(size)
    inside = (at >= 0) & (at < places)
    index = torch.full((places,), -1)
    index[at[inside]] = torch.arange(size)[inside]
    return AxisMap.choosing(index, size)


def _linear(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Form:
    """A linear layer along the last of several axes is a 1×1 convolution of what has this axis first."""
    given = arguments("input weight bias", args, kwargs, bias=None)
    whole = context.form(args, kwargs)
    many = len(whole.shape) > 1
    found = by_tokens(whole, context.values) if many else (context.input(args, kwargs), torch.zeros((), dtype=torch.int64))
    if found is None:
        raise NoForm(
            f"a linear layer works along the last of the axes {list(whole.shape)}, which is no axis of channels",
            "move the channels there, as x.permute(0, 2, 3, 1) does, flatten first, or use nn.Conv2d",
        )
    x, places = found
    weight, step, integral = integer_weight(context.layer, given["weight"])
    synapse = Synapse(context.place, weight if len(x.shape) == 1 else weight[:, :, None, None], integral)
    shape = (len(weight), *x.shape[1:])
    result = _with_bias(convolved(x, synapse, step=step, shape=shape, values=context.values), given["bias"])
    if not many:
        return result
    outputs = torch.arange(len(weight)) * prod(x.shape[1:])
    return simplest(chosen(result, places[..., None] + outputs), context.values)


def _with_bias(x: Affine, bias: Tensor | None) -> Affine:
    return x if bias is None else shifted(x, bias.detach().double())


def _batch_norm(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Form:
    given = arguments("input running_mean running_var weight bias training momentum eps", args, kwargs,
                       weight=None, bias=None, eps=1e-5)  # fmt: skip
    x = context.form(args, kwargs)
    gain = (given["running_var"].double() + given["eps"]).rsqrt()
    if given["weight"] is not None:
        gain = gain * given["weight"].detach().double()
    shift = -given["running_mean"].double() * gain
    if given["bias"] is not None:
        shift = shift + given["bias"].detach().double()
    trailing = len(x.shape) - 1
    return _plus(_times(x, per_channel(gain, trailing), context), per_channel(shift, trailing))


# ------------------------------------------------------------------------------------------------------ sums and products


def _constant(value: Any, shape: tuple[int, ...]) -> Tensor:
    """A number or tensor, as float64 that broadcasts to a shape (without the batch)."""
    if not isinstance(value, Tensor):
        return torch.tensor(float(value), dtype=torch.float64)
    aligned = value.detach().double()
    aligned = aligned.reshape(*(1 for _ in range(len(shape) + 1 - value.dim())), *value.shape)
    assert aligned.shape[0] == 1  # the audit raises an error for what differs from image to image
    return aligned[0]


def _per_channel(numbers: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """[C] of a constant that broadcasts to a shape; None if it differs from place to place."""
    numbers = numbers.reshape(*(1 for _ in range(len(shape) - numbers.dim())), *numbers.shape)
    return numbers.flatten().expand(shape[0]) if all(n == 1 for n in numbers.shape[1:]) else None


def _broadcast(context: Context, x: Form) -> Form:
    """A form in the shape of the call's result."""
    shape = shape_of(context.result)
    if x.shape == shape:
        return x
    numbers = torch.arange(prod(x.shape)).reshape(x.shape)
    return simplest(chosen(x, numbers.expand(shape)), context.values)


def _times(x: Form, factor: Tensor, context: Context) -> Form:
    if factor.numel() == 1 and float(factor) == 1:
        return x
    by_channel = _per_channel(factor, x.shape)
    if by_channel is not None and isinstance(x, Affine):
        return scaled(x, by_channel)
    return simplest(multiplied(arranged(x), factor), context.values)


def _plus(x: Form, constant: Tensor) -> Form:
    if isinstance(x, Arrangement):
        return added_up([x], constant)
    by_channel = _per_channel(constant, x.shape)
    return shifted(x, constant.expand(x.shape) if by_channel is None else by_channel)


def _sum(sign: float, *, reverse: bool = False) -> Reader:
    def read(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Form:
        given = arguments("input other", args, kwargs, alpha=1)
        factors = [1.0, sign * float(given["alpha"])]
        if reverse:
            factors = [-1.0, 1.0] if sign < 0 else [1.0, 1.0]
        sides = [(context.of(given[key]), given[key], f) for key, f in zip(("input", "other"), factors, strict=True)]
        forms = [
            _times(_broadcast(context, a), torch.tensor(f, dtype=torch.float64), context) for a, _, f in sides if a is not None
        ]
        if len(forms) == 2:
            first, second = forms
            if isinstance(first, Affine) and isinstance(second, Affine):
                return added(first, second)
            return simplest(added_up([arranged(first), arranged(second)]), context.values)
        constant, factor = next((value, f) for a, value, f in sides if a is None)
        return _plus(forms[0], factor * _constant(constant, forms[0].shape))

    return read


def _product(*, divide: bool = False) -> Reader:
    def read(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Form:
        given = arguments("input other", args, kwargs)
        x, constant = context.of(given["input"]), given["other"]
        if x is None:
            x, constant = context.of(given["other"]), given["input"]
        assert x is not None
        x = _broadcast(context, x)
        factor = _constant(constant, x.shape)
        return _times(x, 1 / factor if divide else factor, context)

    return read


def _negative(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Form:
    return _times(context.form(args, kwargs), torch.tensor(-1.0, dtype=torch.float64), context)


READERS: dict[str, Reader] = {
    **dict.fromkeys(ARRANGING, shaping.rearrangement),
    **dict.fromkeys(("conv1d", "conv2d"), turning(_convolution)), "linear": _linear, "batch_norm": _batch_norm,
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d"), turning(_transposed_convolution)),
    **dict.fromkeys(("add", "iadd", "radd"), _sum(1.0)),
    **dict.fromkeys(("sub", "isub", "subtract"), _sum(-1.0)), "rsub": _sum(-1.0, reverse=True),
    **dict.fromkeys(("mul", "imul", "rmul", "multiply"), _product()),
    **dict.fromkeys(("div", "truediv", "itruediv", "divide"), _product(divide=True)), "neg": _negative,
    **dict.fromkeys(("avg_pool1d", "avg_pool2d"), turning(shaping.average_pool)),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d"), turning(shaping.adaptive_pool)),
    **dict.fromkeys(("max_pool1d", "max_pool2d"), turning(maxima.max_pool)),
    **dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d"), turning(maxima.adaptive_max_pool)),
    "interpolate": turning(shaping.interpolation), "mean": shaping.reduction(mean=True), "sum": shaping.reduction(mean=False),
    **dict.fromkeys(("cat", "concat", "concatenate"), shaping.concatenation),
    **dict.fromkeys(("contiguous", "clone", "detach", "to", "float", "double", "type", "type_as", "data"), shaping.unchanged),
    **dict.fromkeys(DROPOUT, shaping.unchanged),
}  # fmt: skip
