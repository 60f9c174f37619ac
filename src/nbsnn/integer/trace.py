"""Trace an example through a quantized network and record the affine function in front of each activation.

It traces data, like the audit, and so works with any `forward`. The recorded function is compared with the tensor at the
activation, which detects an operation that was read wrongly.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbsnn.errors import LoweringError
from nbsnn.finite import check_finite
from nbsnn.integer.affine import Affine, NoForm, Synapse, ValueTable, of_value
from nbsnn.integer.arrangement import Arrangement, Form, chosen, home, no_affine, simplest
from nbsnn.integer.calls import Context
from nbsnn.integer.nodes import IMAGE
from nbsnn.integer.reading import READERS
from nbsnn.integer.readout import Group, grouped
from nbsnn.quant.layers import QuantReLU, WeightQuantizer
from nbsnn.shapes import per_channel, plane
from nbsnn.tracing import Tracer, tensors_in

_TOLERANCE = 1e-3  # of the largest current: far above single-precision rounding, far below a wrong reading


@dataclass(frozen=True, eq=False)
class Firing:
    """An activation: its name, levels L, threshold θ, and the affine function in front of it.

    `order` [*current.shape] holds the flat index of each neuron in the activation's output, whose axes may be in another order.
    """

    name: str
    levels: int
    threshold: float
    current: Affine
    order: Tensor

    def ordered(self, output: Tensor) -> Tensor:
        """An output [B, ...] of the activation as values [B, *current.shape] of its neurons."""
        return output.flatten(1)[:, self.order]


@dataclass(frozen=True, eq=False)
class Trace:
    """The recorded network: activations in order, structural values, and the outputs with the tree that groups them."""

    firings: tuple[Firing, ...]
    values: ValueTable
    outputs: tuple[Form, ...]
    tree: Group | int


def trace(quantized: nn.Module, example: Tensor) -> Trace:
    """Run `quantized`, which passed the audit, on `example` [1, C, H, W] and record its operations.

    Raises:
        LoweringError: an operation has no integer form; names the layer and the remedy.
    """
    run = _Recorder(example)
    result = run.follow(quantized, example.clone(), of_value(IMAGE, tuple(example.shape[1:]), 1.0), error=LoweringError)
    tensors: list[Tensor] = []
    tree = grouped(result, tensors)
    assert tree is not None
    outputs: list[Form] = [run.known[tensor] for tensor in tensors]
    for form, tensor in zip(outputs, tensors, strict=True):
        run.check("the output", form, tensor)
    return Trace(tuple(run.firings), run.values, tuple(outputs), tree)


class _Recorder(Tracer):
    opaque = (QuantReLU,)

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.values = ValueTable({IMAGE: tuple(example.shape[1:])})
        self.numbers = Numbers({IMAGE: example.double().clone()})  # for the comparison
        self.firings: list[Firing] = []

    def left(self, name: str, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        if not isinstance(module, QuantReLU):
            return
        form: Form = self.known[inputs[0]]
        self.check(name, form, inputs[0])
        found = home(form, self.values)
        if found is None:
            assert isinstance(form, Arrangement)
            what, remedy = no_affine(form, weighted=False).args
            raise LoweringError(f"{what} at {name}; {remedy}")
        affine, index = found
        threshold = float(module.clip())
        firing = Firing(name, module.levels, threshold, affine, torch.argsort(index.flatten()).reshape(affine.shape))
        self.firings.append(firing)
        self.values.shapes[name] = affine.shape
        self.numbers.values[name] = firing.ordered((output.double() * (module.levels / threshold)).round())
        value = of_value(name, affine.shape, threshold / module.levels)
        self.known[output] = value if affine is form else simplest(chosen(value, index), self.values)

    def called(self, func: Callable[..., Any], name: str, args: Any, kwargs: Mapping[str, Any], sources: list[Tensor]) -> Any:
        result = func(*args, **kwargs)
        layer = self.innermost if isinstance(self.innermost, WeightQuantizer) else None
        context = Context(self.known, self.values, self.place, layer, result)
        try:
            if name not in READERS:
                raise NoForm(
                    f"{name}() has no integer form",
                    "between activations write convolutions, linear layers, sums, products with constants per channel, average "
                    "pools, interpolation, concatenation and reshapes",
                )
            form = READERS[name](context, func, args, kwargs)
        except NoForm as error:
            what, remedy = error.args
            raise LoweringError(f"{what} at {self.place}; {remedy}") from None
        outputs = list(tensors_in(result))
        for output, known in zip(outputs, form if isinstance(form, list) else [form], strict=True):
            self.known[output] = known
        return result

    def check(self, name: str, form: Form, actual: Tensor) -> None:
        """Compare the recorded function with the tensor."""
        check_finite(f"the current of {name}", actual, LoweringError, remedy="look for a division by 0 before it")
        expected = evaluate_form(form, self.values, self.numbers)
        error = float((expected - actual.double()).abs().max())
        if not error <= _TOLERANCE * max(float(actual.abs().max()), float(expected.abs().max()), 1e-6):
            raise LoweringError(
                f"the current of {name} differs from its recorded operations (by {error:.3g}); "
                "avoid operations in place on views, and code that looks at values"
            )


@dataclass(eq=False)
class Numbers:
    """Values [B, ...] float64 by name, and what synapses make of them: blocks that read the same currents share these."""

    values: dict[str, Tensor]
    _currents: dict[tuple[str, Synapse], Tensor] = field(default_factory=dict)

    def of(self, value: str, synapse: Synapse | None) -> Tensor:
        """A value, or the result [B, O, ...] of a synapse on it."""
        x = self.values[value]
        if synapse is None:
            return x
        if (value, synapse) not in self._currents:
            s = synapse
            if s.weight.dim() > 2:
                planes = x.reshape(len(x), *plane(x.shape[1:]))
                result = F.conv2d(planes, s.weight, None, s.stride, s.padding, s.dilation, s.groups)
            else:
                result = F.linear(x.flatten(1), s.weight)
            self._currents[value, s] = result
        return self._currents[value, synapse]


def evaluate_form(form: Form, values: ValueTable, numbers: Numbers) -> Tensor:
    """As `evaluate_affine`, of any form."""
    if isinstance(form, Affine):
        return evaluate_affine(form, values, numbers)
    total = form.shift.expand(1, *form.shape)
    for piece in form.pieces:
        part = evaluate_affine(piece.form, values, numbers).flatten(1)[:, piece.index.clamp_min(0)] * (piece.index >= 0)
        total = total + (part if piece.gain is None else part * piece.gain)
    return total


def evaluate_affine(affine: Affine, values: ValueTable, numbers: Numbers) -> Tensor:
    """[B, *shape] float64 of an affine function of values; those of structural ones are added."""
    trailing = len(affine.shape) - 1
    known = numbers.values
    for node in values.nodes:
        if node.name not in known and node.source in known:
            known[node.name] = node.apply(known[node.source])
    batch = len(known[IMAGE])
    total = affine.shift.expand(batch, *affine.shape)
    for term in affine.terms:
        part = numbers.of(term.value, term.synapse)
        part = part[:, term.take.clamp_min(0)] * per_channel(term.take >= 0, part.dim() - 2)
        if term.after is not None:
            part = term.after.apply(part)
        total = total + part.reshape(-1, *affine.shape) * per_channel(term.gain, trailing)
    return total
