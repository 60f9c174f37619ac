"""A node of an ONNX graph as the functions that read operators see it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from nbsnn.errors import CheckpointError, shown
from nbsnn.importers.onnx.signals import Reading
from nbsnn.importers.onnx.values import Constant, Current, Levels, Whole
from nbsnn.importers.onnx.wire import numbers_of
from nbsnn.onnx_package import onnx_package

Operand = Constant | Whole | Levels | Current


class Operation:
    """A node with its attributes and the values of its inputs (None for those left out)."""

    def __init__(self, node: Any, values: Mapping[str, Operand], reading: Reading, path: Path, outputs: set[str]) -> None:
        self.kind, self.reading, self.path = node.op_type, reading, path
        self.label = shown(node.name or node.output[0])  # bytes, if it is no UTF-8
        self.inputs = [values[name] if name else None for name in node.input]
        self.results = len(node.output)
        self.is_output = bool(outputs & set(node.output))
        onnx = onnx_package()
        self.attributes: dict[str, Any] = {}
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                self.attributes[attribute.name] = numbers_of(attribute.t, path)
            elif attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                self.refuse("has a graph of its own", "export a network without conditions and loops")
            else:
                self.attributes[attribute.name] = onnx.helper.get_attribute_value(attribute)

    def refuse(self, what: str, remedy: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: {self.kind} {shown(self.label)} {what}; {remedy}")

    def get(self, name: str, default: Any) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def word(self, name: str, default: str) -> str:
        """An attribute that is a text."""
        given = self.get(name, default)
        return given.decode(errors="replace") if isinstance(given, bytes) else str(given)

    def whole(self, name: str, default: list[int]) -> tuple[int, ...]:
        """An attribute that is a list of integers."""
        given = self.get(name, default)
        if not isinstance(given, (list, tuple)) or len(given) > 8:
            self.refuse(f"has {name}={shown(given)}", "export it again")
        return tuple(int(value) for value in given)

    def numbers(self, name: str, index: int) -> tuple[int, ...] | None:
        """A few integers: input `index`, or an attribute, as older versions of the operators have it; None without."""
        given = self.constant(index)
        if given is None:
            return self.whole(name, []) if name in self.attributes else None
        if given.size > 16:
            self.refuse(f"has {given.size} numbers as {name}", "export it again")
        return tuple(int(value) for value in given.reshape(-1))

    def signal(self, index: int = 0) -> Current:
        """An input that depends on the image, with its gain applied."""
        return self.reading.applied(self.raw(index), self.label)

    def raw(self, index: int = 0) -> Current:
        """An input that depends on the image."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if not isinstance(value, Current):
            self.refuse(f"does not read the image at input {index}", "only weights and shapes may be constants")
        return value

    def constant(self, index: int) -> Constant | None:
        """An input that is a constant; None if it is left out."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(value, (Current, Levels)):
            self.refuse(f"has an input {index} that depends on the image", "only sums may combine two signals")
        return value.numbers if isinstance(value, Whole) else value

    def scalar(self, index: int, what: str) -> float | None:
        """A constant with one value."""
        value = self.constant(index)
        if value is not None and value.size != 1:
            self.refuse(f"has {value.size} values as {what}", "quantize activations per tensor")
        return None if value is None else float(value.reshape(()))

    def moved(self, kind: str, options: Mapping[str, Any], x: Current | None = None) -> Current:
        """A step that chooses, copies and arranges values of a signal, the first input; max pools among them, paddings not.

        It commutes with an activation and with a gain, which stay to be applied behind it.
        """
        x = self.raw() if x is None else x
        if x.bend is not None and not x.floored:
            return self.reading.later(x, kind, self.label, options)
        ordered = x.gain > 0 or "max pool" not in kind
        if x.bend is None and not x.floored and ordered:
            made = self.reading.moved(kind, self.label, Current(x.step), options)
            return replace(made, gain=x.gain, shift=x.shift)
        return self.reading.moved(kind, self.label, self.reading.applied(x, self.label), options)

    def place_axis(self, axis: int, rank: int, *, first: int = 1) -> int:
        """An axis as a number from 0, at least `first`: the batch stays as it is."""
        found = axis % rank if -rank <= axis < rank else -1
        if found < first:
            self.refuse(
                f"works on axis {axis} of {rank}", "keep the batch, axis 0, as it is" if first == 1 else "work on places only"
            )
        return found

    def has(self, index: int) -> bool:
        """Whether an input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None


def weight_shape(node: Operation, weight: Operand | None, index: int) -> tuple[int, ...]:
    """The shape of a weight, which is input `index`."""
    numbers = weight.integers if isinstance(weight, Whole) else np.asarray(node.constant(index))
    return tuple(numbers.shape)
