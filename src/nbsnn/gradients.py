"""Values of one tensor with the gradient of another: the basis of straight-through estimators."""

from typing import Any

import torch
from torch import Tensor


class _WithValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source: Tensor, values: Tensor) -> Tensor:
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def with_values(source: Tensor, values: Tensor) -> Tensor:
    """`values`, with the gradient of `source`, which has the same shape."""
    result: Tensor = _WithValues.apply(source, values)  # type: ignore[no-untyped-call]
    return result
