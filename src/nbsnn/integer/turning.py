"""Windows on planes whose rows and columns were exchanged, as by `x.transpose(2, 3)`: the same windows, exchanged too, on the
planes as they were.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from nbsnn.integer.affine import Affine
from nbsnn.integer.arrangement import Form, as_affine, chosen, simplest
from nbsnn.integer.calls import Context, Reader, arguments


def turning(read: Callable[[Context, Callable[..., Any], Any, Mapping[str, Any]], Affine]) -> Reader:
    """A reader of a function of windows that also reads it on exchanged planes."""

    def read_either(context: Context, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Form | list[Form]:
        x = context.form(args, kwargs)
        if isinstance(x, Affine) or len(x.shape) != 3 or as_affine(x, context.values, thin=False) is not None:
            return read(context, func, args, kwargs)
        upright = as_affine(chosen(x, _exchanged(x.shape)), context.values, thin=False)
        if upright is None:
            return read(context, func, args, kwargs)  # which says what is wrong
        given: Tensor = args[0] if args else arguments("input", args, kwargs)["input"]
        known = WeakTensorKeyDictionary({(planes := given.mT): upright})
        inner = replace(context, known=known, result=context.result.mT)

        def turn(value: Any) -> Any:
            if isinstance(value, Tensor):
                return planes if value is given else value.mT if value.dim() == 4 else value
            return tuple(value)[::-1] if isinstance(value, (tuple, list)) and len(value) == 2 else value

        form = read(inner, func, [turn(value) for value in args], {key: turn(value) for key, value in kwargs.items()})
        return simplest(chosen(form, _exchanged(form.shape)), context.values)

    return read_either


def _exchanged(shape: tuple[int, ...]) -> Tensor:
    """Flat indices of the elements [C, W, H] of planes [C, H, W]."""
    return torch.arange(prod(shape)).reshape(shape).mT
