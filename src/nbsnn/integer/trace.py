"""Follow an example through a quantized network and write down, for each activation, the affine function that feeds it.

Like the audit of a conversion this watches torch functions on tensors that descend from the image, so that it sees through
any `forward`. What it writes down is compared with the tensor that really arrives: a step read wrongly cannot pass.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from nbsnn.errors import LoweringError
from nbsnn.finite import check_finite
from nbsnn.integer.affine import Affine, NoForm, Values, plain
from nbsnn.integer.calls import Context
from nbsnn.integer.program import IMAGE
from nbsnn.integer.reading import READERS
from nbsnn.quant.layers import QuantReLU, WeightQuantizer, at_least
from nbsnn.spiking.audit import CONSTANTS, METADATA, function_name, tensors_in

_TOLERANCE = 1e-3  # of the largest current: far above rounding in single precision, far below a step read wrongly


@dataclass(frozen=True, eq=False)
class Firing:
    """An activation as it was met: its name, levels L, threshold θ, and the affine function before it."""

    name: str
    levels: int
    threshold: float
    current: Affine


@dataclass(frozen=True, eq=False)
class Trace:
    """Everything that the network does to an image: activations in order, structural values, and the output."""

    firings: tuple[Firing, ...]
    values: Values
    output: Affine


@torch.no_grad()
def trace(quantized: nn.Module, example: Tensor) -> Trace:
    """Run `quantized` on `example` [1, C, H, W] and write down what happens.

    Raises:
        LoweringError: a step without integer form; names the layer and the remedy.
    """
    run = _Tracer(example)
    handles = [hook for name, module in quantized.named_modules() for hook in run.watch(name, module)]
    try:
        with run:
            output = quantized(example)
    finally:
        for handle in handles:
            handle.remove()
    affine: Affine = run.known[output]
    run.check("the output", affine, output)
    return Trace(tuple(run.firings), run.values, affine)


class _Tracer(TorchFunctionMode):
    def __init__(self, example: Tensor) -> None:
        super().__init__()
        shape = tuple(example.shape[1:])
        self.values = Values({IMAGE: shape})
        self.numbers = {IMAGE: example.double().clone()}  # of values, for the comparison
        self.known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.known[example] = plain(IMAGE, shape, 1.0)
        self.firings: list[Firing] = []
        self.path: list[tuple[str, nn.Module]] = []

    def watch(self, name: str, module: nn.Module) -> Iterable[Any]:
        """Hooks that follow the path of modules and note activations."""

        def enter(_: nn.Module, args: Any) -> None:
            self.path.append((name, module))

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(module, QuantReLU):
                self._note(name, module, args[0], output)
            self.path.pop()

        return module.register_forward_pre_hook(enter), module.register_forward_hook(leave)

    def _note(self, name: str, act: QuantReLU, current: Tensor, output: Tensor) -> None:
        affine: Affine = self.known[current]
        self.check(name, affine, current)
        threshold = float(at_least(act.threshold))
        self.firings.append(Firing(name, act.levels, threshold, affine))
        self.values.shapes[name] = affine.shape
        self.numbers[name] = (output.double() * (act.levels / threshold)).round()
        self.known[output] = plain(name, affine.shape, threshold / act.levels)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inside = self.path[-1] if self.path else ("", None)
        sources = [t for t in tensors_in((args, kwargs)) if t in self.known]
        name = function_name(func)
        bookkeeping = name in CONSTANTS or name in METADATA or (func.__name__ == "__get__" and name != "data")
        if not sources or bookkeeping or isinstance(inside[1], QuantReLU):
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        layer = inside[1] if isinstance(inside[1], WeightQuantizer) else None
        context = Context(self.known, self.values, inside[0] or "the network", layer, result)
        try:
            if name not in READERS:
                raise NoForm(
                    f"{name}() has no integer form",
                    "between activations write convolutions, linear layers, sums, products with constants per channel, "
                    "concatenation, average pooling and flattening",
                )
            affine = READERS[name](context, func, args, kwargs)
        except NoForm as error:
            what, remedy = error.args
            raise LoweringError(f"{what} at {inside[0] or 'the network’s own forward'}; {remedy}") from None
        outputs = list(tensors_in(result))
        for output, form in zip(outputs, affine if isinstance(affine, list) else [affine], strict=True):
            self.known[output] = form
        return result

    def check(self, name: str, affine: Affine, actual: Tensor) -> None:
        """Compare what was written down with the tensor that arrived."""
        check_finite(f"the current of {name}", actual, LoweringError, remedy="look for a division by 0 before it")
        expected = evaluate_affine(affine, self.values, self.numbers)
        error = float((expected - actual.double()).abs().max())
        if not error <= _TOLERANCE * max(float(actual.abs().max()), float(expected.abs().max()), 1e-6):
            raise LoweringError(
                f"the current of {name} is not what its operations say (off by {error:.3g}); "
                "avoid operations in place on views, and code that looks at values"
            )


def evaluate_affine(affine: Affine, values: Values, numbers: dict[str, Tensor]) -> Tensor:
    """[B, *shape] float64 of an affine function, given the values [B, ...] float64 by name; structural ones are added."""
    place = (-1, *(1 for _ in affine.shape[1:]))
    for node in values.nodes:
        if node.name not in numbers and node.source in numbers:
            numbers[node.name] = node.apply(numbers[node.source])
    total = affine.shift.view(place).expand(affine.shape)
    for term in affine.terms:
        x = numbers[term.value]
        if term.take is not None:
            part = x[:, term.take.clamp_min(0)] * (term.take >= 0).view(place)
        elif term.synapse is not None and term.synapse.weight.dim() > 2:
            s = term.synapse
            part = F.conv2d(x, s.weight, None, s.stride, s.padding, s.dilation, s.groups)
        else:
            assert term.synapse is not None
            part = F.linear(x, term.synapse.weight)
        total = total + part.reshape(-1, *affine.shape) * term.gain.view(place)
    return total
