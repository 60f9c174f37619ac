"""Trace an example through a quantized network and record the affine function in front of each activation.

It traces data, like the audit, and so works with any `forward`. The recorded function is compared with the tensor at the
activation, which detects an operation that was read wrongly.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nbsnn.errors import LoweringError
from nbsnn.finite import check_finite
from nbsnn.integer.affine import Affine, NoForm, ValueTable, of_value
from nbsnn.integer.calls import Context
from nbsnn.integer.nodes import IMAGE
from nbsnn.integer.reading import READERS
from nbsnn.quant.layers import QuantReLU, WeightQuantizer
from nbsnn.shapes import per_channel
from nbsnn.tracing import Tracer, tensors_in

_TOLERANCE = 1e-3  # of the largest current: far above single-precision rounding, far below a wrong reading


@dataclass(frozen=True, eq=False)
class Firing:
    """An activation: its name, levels L, threshold θ, and the affine function in front of it."""

    name: str
    levels: int
    threshold: float
    current: Affine


@dataclass(frozen=True, eq=False)
class Trace:
    """The recorded network: activations in order, structural values, and the output."""

    firings: tuple[Firing, ...]
    values: ValueTable
    output: Affine


def trace(quantized: nn.Module, example: Tensor) -> Trace:
    """Run `quantized`, which passed the audit, on `example` [1, C, H, W] and record its operations.

    Raises:
        LoweringError: an operation has no integer form; names the layer and the remedy.
    """
    run = _Recorder(example)
    output = run.follow(quantized, example.clone(), of_value(IMAGE, tuple(example.shape[1:]), 1.0), error=LoweringError)
    affine: Affine = run.known[output]
    run.check("the output", affine, output)
    return Trace(tuple(run.firings), run.values, affine)


class _Recorder(Tracer):
    opaque = (QuantReLU,)

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.values = ValueTable({IMAGE: tuple(example.shape[1:])})
        self.numbers = {IMAGE: example.double().clone()}  # of values, for the comparison
        self.firings: list[Firing] = []

    def left(self, name: str, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        if not isinstance(module, QuantReLU):
            return
        affine: Affine = self.known[inputs[0]]
        self.check(name, affine, inputs[0])
        threshold = float(module.clip())
        self.firings.append(Firing(name, module.levels, threshold, affine))
        self.values.shapes[name] = affine.shape
        self.numbers[name] = (output.double() * (module.levels / threshold)).round()
        self.known[output] = of_value(name, affine.shape, threshold / module.levels)

    def called(self, func: Callable[..., Any], name: str, args: Any, kwargs: Mapping[str, Any], sources: list[Tensor]) -> Any:
        result = func(*args, **kwargs)
        layer = self.innermost if isinstance(self.innermost, WeightQuantizer) else None
        context = Context(self.known, self.values, self.place, layer, result)
        try:
            if name not in READERS:
                raise NoForm(
                    f"{name}() has no integer form",
                    "between activations write 2-d convolutions, linear layers, sums, products with constants per channel, "
                    "concatenation, average pooling and flattening",
                )
            affine = READERS[name](context, func, args, kwargs)
        except NoForm as error:
            what, remedy = error.args
            raise LoweringError(f"{what} at {self.place}; {remedy}") from None
        outputs = list(tensors_in(result))
        for output, form in zip(outputs, affine if isinstance(affine, list) else [affine], strict=True):
            self.known[output] = form
        return result

    def check(self, name: str, affine: Affine, actual: Tensor) -> None:
        """Compare the recorded function with the tensor."""
        check_finite(f"the current of {name}", actual, LoweringError, remedy="look for a division by 0 before it")
        if len(affine.shape) == 2:
            raise LoweringError(
                f"the current of {name} has shape {list(affine.shape)}, and neurons lie in a row or in planes; flatten it "
                "before, or give images [B, C, 1, L]"
            )
        expected = evaluate_affine(affine, self.values, self.numbers)
        error = float((expected - actual.double()).abs().max())
        if not error <= _TOLERANCE * max(float(actual.abs().max()), float(expected.abs().max()), 1e-6):
            raise LoweringError(
                f"the current of {name} differs from its recorded operations (by {error:.3g}); "
                "avoid operations in place on views, and code that looks at values"
            )


def evaluate_affine(affine: Affine, values: ValueTable, numbers: dict[str, Tensor]) -> Tensor:
    """[B, *shape] float64 of an affine function, given the values [B, ...] float64 by name; structural ones are added."""
    trailing = len(affine.shape) - 1
    for node in values.nodes:
        if node.name not in numbers and node.source in numbers:
            numbers[node.name] = node.apply(numbers[node.source])
    total = per_channel(affine.shift, trailing).expand(affine.shape)
    for term in affine.terms:
        x = numbers[term.value]
        if term.take is not None:
            part = x[:, term.take.clamp_min(0)] * per_channel(term.take >= 0, trailing)
        elif term.synapse is not None and term.synapse.weight.dim() > 2:
            s = term.synapse
            part = F.conv2d(x, s.weight, None, s.stride, s.padding, s.dilation, s.groups)
        else:
            assert term.synapse is not None
            part = F.linear(x, term.synapse.weight)
        total = total + part.reshape(-1, *affine.shape) * per_channel(term.gain, trailing)
    return total
