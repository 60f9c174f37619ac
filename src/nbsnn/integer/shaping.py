"""Readers of functions that average, reshape or select."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nbsnn.integer.affine import Affine, NoForm, ValueTable, concatenated, flattened, pooled, selected
from nbsnn.integer.calls import Context, Reader, arguments, pair, shape_of
from nbsnn.shapes import per_channel


def average_pool(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
    given = arguments("input kernel_size stride padding ceil_mode count_include_pad divisor_override", args, kwargs,
                       stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None)  # fmt: skip
    x = context.input(args, kwargs)
    kernel, padding = pair(given["kernel_size"]), pair(given["padding"])
    stride = pair(given["stride"]) if given["stride"] not in (None, [], ()) else kernel
    divisor = given["divisor_override"] or kernel[0] * kernel[1]
    result = pooled(x, context.values, kernel=kernel, stride=stride, padding=padding, divisor=divisor)
    varies = any(padding) and not given["count_include_pad"] and not given["divisor_override"]
    if varies or shape_of(context.result) != result.shape:
        raise NoForm(
            "the divisor of this average varies with the place (count_include_pad=False or ceil_mode=True)",
            "use nn.AvgPool2d without them",
        )
    return result


def adaptive_pool(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
    x = context.input(args, kwargs)
    out = shape_of(context.result)[1:]
    if any(n % m for n, m in zip(x.shape[1:], out, strict=True)):
        raise NoForm(f"{list(x.shape[1:])} does not divide into {list(out)} windows", "choose an output size that divides it")
    kernel = pair([n // m for n, m in zip(x.shape[1:], out, strict=True)])
    return pooled(x, context.values, kernel=kernel, stride=kernel, padding=(0, 0), divisor=kernel[0] * kernel[1])


def reduction(*, mean: bool) -> Reader:
    def read(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
        given = arguments("input dim keepdim", args, kwargs, dim=None)
        x = context.input(args, kwargs)
        dims = given["dim"] if isinstance(given["dim"], (tuple, list)) else [given["dim"]]
        if len(x.shape) != 3 or {d % 4 for d in dims if d is not None} != {2, 3}:
            raise NoForm("a mean or sum over other axes than height and width", "reduce over dim=(2, 3)")
        kernel = pair(x.shape[1:])
        divisor = kernel[0] * kernel[1] if mean else 1
        result = pooled(x, context.values, kernel=kernel, stride=kernel, padding=(0, 0), divisor=divisor)
        return result if shape_of(context.result) == result.shape else flattened(result, context.values)

    return read


def concatenation(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
    given = arguments("tensors dim", args, kwargs, dim=0)
    parts = [context.of(t) for t in given["tensors"]]
    if given["dim"] % context.result.dim() != 1 or any(p is None for p in parts):
        raise NoForm(
            "a concatenation along another axis than the channels, or with a constant", "concatenate currents with dim=1"
        )
    return concatenated([p for p in parts if p is not None])


def reshape(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
    x = context.input(args, kwargs)
    shape = shape_of(context.result)
    if shape == x.shape:
        return x
    if len(shape) == 1:
        return flattened(x, context.values)
    raise NoForm(f"{list(x.shape)} becomes {list(shape)}", "reshape only by flatten(1)")


def unchanged(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine:
    x = context.input(args, kwargs)
    return x


# ------------------------------------------------------------------------------------------------ selecting channels


def selection(context: Context, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Affine | list[Affine]:
    """Slices, chunks and shuffles: the function is applied to indices of channels, rows and columns to see what it selects."""
    mode = getattr(context.layer, "padding_mode", "zeros")
    if mode != "zeros":
        raise NoForm(f"padding_mode={mode!r} has no integer form", "use padding_mode='zeros'")
    tensor = args[0] if args else arguments("input", args, kwargs)["input"]
    x = context.input(args, kwargs)
    many = isinstance(context.result, (tuple, list))
    results = []
    for axis in range(len(x.shape)):
        numbers = torch.arange(1, x.shape[axis] + 1, dtype=tensor.dtype)  # 0 is for padding
        numbers = numbers.view(1, *(-1 if a == axis else 1 for a in range(len(x.shape)))).expand(tensor.shape)
        chosen = func(numbers.contiguous(), *args[1:], **{k: v for k, v in kwargs.items() if k not in ("input", "self")})
        results.append(list(chosen) if many else [chosen])
    forms = [_chosen(x, [axis[i] for axis in results], context.values) for i in range(len(results[0]))]
    return forms if many else forms[0]


def _chosen(x: Affine, numbers: list[Tensor], values: ValueTable) -> Affine:
    """x at the indices in `numbers`, one tensor [1, C', H', W'] per axis of x, counted from 1; 0 is padding."""
    refusal = NoForm(
        "this choice of rows or columns has no integer form",
        "choose channels, or every n-th row and column from 0, and pad within the convolution",
    )
    if any(n.dim() != len(x.shape) + 1 for n in numbers):
        raise refusal
    # Along its own axis a selection is a list of indices; along all other axes it must repeat.
    lines = [n.amax(tuple(a for a in range(n.dim()) if a != axis)) for axis, n in enumerate(numbers, start=1)]
    present = per_channel(lines[0] > 0, len(x.shape) - 1)
    for axis, (line, number) in enumerate(zip(lines, numbers, strict=True), start=1):
        along = line.view(*(-1 if a == axis else 1 for a in range(number.dim())))
        if not torch.equal(number, (along * present).expand(number.shape)):
            raise refusal
    strides = [int(line[1] - line[0]) if len(line) > 1 else size for line, size in zip(lines[1:], x.shape[1:], strict=True)]
    if any(stride != 1 for stride in strides):
        # A 1×1 window with a stride selects positions.
        x = pooled(x, values, kernel=(1, 1), stride=pair(strides), padding=(0, 0), divisor=1) if min(strides) > 0 else x
    steps = [1 + stride * torch.arange(len(line)).to(line) for line, stride in zip(lines[1:], strides, strict=True)]
    if x.shape[1:] != tuple(map(len, steps)) or not all(map(torch.equal, lines[1:], steps)):
        raise refusal
    return selected(x, lines[0].to(torch.int64) - 1)
