"""Integer networks as ONNX graphs of integer operations, which give the bits of the engine `counts` in any runtime.

Every number is an integer up to the last multiplication of the heads, which is in float64 as in the engine. Products are
ConvInteger and MatMulInteger of digits of 8 bits: counts are one digit, images and large sums several. Weights are stored as
unsigned digits with the zero point 128: runtimes on processors without VNNI saturate products of unsigned and signed ones.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nbsnn.errors import LoweringError
from nbsnn.export.onnx.graph import Array, Graph
from nbsnn.export.onnx.places import Shape, Structural, apply_map, as_planes, place_node, place_outputs
from nbsnn.integer.bounds import row_sums
from nbsnn.integer.frozen import thawed
from nbsnn.integer.nodes import IMAGE, Branch, Flatten, Head, MaxPool, Pixels, Resample, Unit
from nbsnn.integer.program import Program

_ZERO = 128  # the stored value of a signed digit of 0
_DIGIT = 256


@dataclass(frozen=True)
class _Value:
    """A value of the graph: its name, type and shape, and bounds of its numbers."""

    name: str
    dtype: Any
    shape: Shape
    low: int
    high: int


def write_program(graph: Graph, program: Program, *, pixels: bool) -> list[str]:
    """Append a program to a graph; the names of its outputs.

    Args:
        pixels: the input is 8-bit pixels, instead of normalized floats.
    Raises:
        LoweringError: sums of digits overflow 32 bits.
    """
    writer = _Writer(graph, program)
    writer.values[IMAGE] = _image(graph, program.pixels, pixels=pixels)
    for node in program.nodes:
        writer.values[node.name] = writer.unit(node) if isinstance(node, Unit) else writer.structural(node)
    names = ["head" if len(program.heads) == 1 else f"head.{i}" for i in range(len(program.heads))]
    heads = [writer.head(head, name) for head, name in zip(program.heads, names, strict=True)]
    return place_outputs(graph, program.readout, heads, [head.shape for head in program.heads], np.float64)


def _image(graph: Graph, grid: Pixels, *, pixels: bool) -> _Value:
    """The image on its grid of integers."""
    image = graph.input("images", np.uint8 if pixels else np.float32, grid.shape)
    if pixels:
        assert grid.table is not None
        table = thawed(grid.table).numpy()
        first = (np.arange(len(table)) * table.shape[1]).reshape(-1, *(1 for _ in grid.shape[1:]))
        index = graph.op("Add", graph.cast(image, np.int32, name="image/bytes"), graph.constant(first, np.int32, "image.first"),
                         name="image/index")  # fmt: skip
        name = graph.op("Gather", graph.constant(table.flatten(), np.int32, "image.table"), index, name="image")
    else:
        value = graph.cast(image, np.float64, name="image/float64")
        value = graph.op("Mul", value, graph.constant(2.0**grid.fraction_bits, np.float64, "image.scale"), name="image/scaled")
        value = graph.op("Round", value, name="image/rounded")  # halves to even, as in the engine
        edges = [graph.constant(edge, np.float64, f"image.{end}") for end, edge in (("low", grid.low), ("high", grid.high))]
        name = graph.cast(graph.op("Clip", value, *edges, name="image/clipped"), np.int32, name="image")
    return _Value(name, np.int32, grid.shape, grid.low, grid.high)


class _Writer:
    """Appends the nodes of a program; `values` are those so far."""

    def __init__(self, graph: Graph, program: Program) -> None:
        self.graph, self.program = graph, program
        self.values: dict[str, _Value] = {}
        self._split_values: dict[str, list[tuple[str, int]]] = {}

    # ------------------------------------------------------------------------------------------------------- products

    def accumulate(self, branch: Branch, shape: Shape, name: str, *, wide: bool = False) -> str:
        """acc of a branch, [batch, *shape] int32, or int64 if its source is constant or if `wide`."""
        x, constant = self.values[branch.source], branch.source in self.program.constants
        dtype = np.int64 if constant or wide else np.int32
        if branch.weight is None:
            acc = self._cast(x, dtype, f"{name}/cast")
            return acc if x.shape == shape else self.graph.reshape(acc, shape, name=f"{name}/shape")
        acc = self._product(x, branch, dtype, name)
        if branch.after is not None:
            acc = apply_map(self.graph, branch.after, acc, dtype, name=f"{name}/places")
        flat = branch.weight.dim() == 2
        return acc if flat or len(shape) == 3 else self.graph.reshape(acc, shape, name=f"{name}/shape")

    def _product(self, x: _Value, branch: Branch, dtype: Any, name: str) -> str:
        """The branch's convolution or product, before a map of its places: of each digit of x with each of the weight."""
        digits, weights = self._digits(x), _weight_digits(thawed(branch.weight).numpy())
        many = len(digits) * len(weights) > 1
        total: str | None = None
        for i, (digit, zero) in enumerate(digits):
            for j, weight in enumerate(weights):
                self._check_sums(weight, name)
                at = f"{name}/{i}.{j}" if many else name
                part = self._multiply(digit, zero, weight, branch, f"{name}.weight{f'.{j}' if len(weights) > 1 else ''}", at)
                if many:
                    part = self.graph.cast(part, np.int64, name=f"{at}/int64")
                    if i + j:
                        place = self.graph.constant(_DIGIT ** (i + j), np.int64, f"place.{i + j}")
                        part = self.graph.op("Mul", part, place, name=f"{at}/scaled")
                total = part if total is None else self.graph.op("Add", total, part, name=f"{name}/sum")
        assert total is not None
        return total if dtype == (np.int64 if many else np.int32) else self.graph.cast(total, dtype, name=f"{name}/cast")

    def _multiply(self, digit: str, zero: int, weight: Array, branch: Branch, label: str, name: str) -> str:
        graph = self.graph
        stored = (weight + _ZERO).astype(np.uint8)
        zeros = (
            graph.constant(zero, np.uint8, f"zero.{zero}") if zero else "", graph.constant(_ZERO, np.uint8, f"zero.{_ZERO}")
        )  # fmt: skip
        if weight.ndim == 2:
            return graph.op("MatMulInteger", digit, graph.constant(stored.T, np.uint8, label), *zeros, name=name)
        return graph.op(
            "ConvInteger", digit, graph.constant(stored, np.uint8, label), *zeros, name=name, kernel_shape=stored.shape[2:],
            strides=branch.stride, dilations=branch.dilation, group=branch.groups, pads=(*branch.padding, *branch.padding),
        )  # fmt: skip

    def _digits(self, x: _Value) -> list[tuple[str, int]]:
        """The digits of a value, smallest first, as planes (or rows) of uint8, each with the stored value of 0."""
        if x.name not in self._split_values:
            self._split_values[x.name] = self._split(x)
        return self._split_values[x.name]

    def _split(self, x: _Value) -> list[tuple[str, int]]:
        graph, found = self.graph, []
        name, dtype, low, high = x.name, x.dtype, x.low, x.high
        signed, number = low < 0, 0
        while not (low >= 0 and high < _DIGIT) and not (low >= -_ZERO and high < _ZERO):
            at = f"{x.name}/digit{number}"
            size = graph.constant(_DIGIT, dtype, f"digit.{np.dtype(dtype)}")
            rest = graph.op("Mod", name, size, name=at)  # in [0, 256), also of negative numbers
            found.append((graph.cast(rest, np.uint8, name=f"{at}/uint8"), 0))
            name = graph.op("Div", graph.op("Sub", name, rest, name=f"{at}/above"), size, name=f"{at}/rest")
            low, high, number = low // _DIGIT, high // _DIGIT, number + 1
        if signed:
            zero = graph.constant(_ZERO, dtype, f"zero.{_ZERO}.{np.dtype(dtype)}")
            name = graph.op("Add", name, zero, name=f"{x.name}/digit{number}/up")
        found.append(
            (name if dtype == np.uint8 else graph.cast(name, np.uint8, name=f"{x.name}/uint8"), _ZERO if signed else 0)
        )
        return [(self._shaped(digit, x.shape, f"{x.name}/planes"), zero) for digit, zero in found]

    def _shaped(self, digit: str, shape: Shape, name: str) -> str:
        """A digit as planes, if it has places."""
        return as_planes(self.graph, digit, shape, name) if len(shape) > 1 else digit

    def _check_sums(self, weight: Array, name: str) -> None:
        largest = 2 * _ZERO * int(np.abs(weight).reshape(len(weight), -1).sum(1).max())
        if largest >= 2**31:
            raise LoweringError(
                f"the sums of {name} over digits overflow the 32 bits of ONNX's integer products; average before it"
            )

    def _cast(self, x: _Value, dtype: Any, name: str) -> str:
        return x.name if x.dtype == dtype else self.graph.cast(x.name, dtype, name=name)

    # ---------------------------------------------------------------------------------------------------------- nodes

    def unit(self, unit: Unit) -> _Value:
        """Counts, clip((2^(F−1) + T·(bias + constant) + Σ multiplier·acc) >> F, 0, levels), as uint8."""
        graph, name, dtype = self.graph, unit.name, np.int64 if unit.wide else np.int32
        T, F, trailing = self.program.timesteps, unit.fraction_bits, len(unit.shape) - 1
        total: str | None = None
        for number, branch in enumerate(unit.branches):
            at = f"{name}/branch{number}" if len(unit.branches) > 1 else f"{name}/branch"
            part = self.accumulate(branch, unit.shape, at)
            multiplier = thawed(branch.multiplier).numpy()
            if branch.source in self.program.constants:
                part = self._constant_current(part, branch, unit, at)
            else:
                part = part if not unit.wide else graph.cast(part, np.int64, name=f"{at}/int64")
                factor = graph.constant(_per_channel(multiplier, trailing), dtype, f"{at}.multiplier")
                part = graph.op("Mul", part, factor, name=f"{at}/scaled")
            total = part if total is None else graph.op("Add", total, part, name=f"{name}/sum")
        assert total is not None
        bias = T * thawed(unit.bias).numpy().astype(np.int64) + 2 ** (F - 1)
        bias = bias if bias.ndim == len(unit.shape) else _per_channel(bias, trailing)
        total = graph.op("Add", total, graph.constant(bias, dtype, f"{name}.bias"), name=f"{name}/membrane")
        most = min((unit.levels + 1) * 2**F, 2 ** (63 if unit.wide else 31)) - 1
        edges = graph.constant(0, dtype, f"zero.{np.dtype(dtype)}"), graph.constant(most, dtype, f"most.{most}")
        shifted = self._shifted(graph.op("Clip", total, *edges, name=f"{name}/clipped"), F, unit.wide, f"{name}/shifted")
        return _Value(graph.cast(shifted, np.uint8, name=name), np.uint8, unit.shape, 0, unit.levels)

    def _shifted(self, x: str, bits: int, wide: bool, name: str) -> str:
        """x >> bits, of x ≥ 0, unsigned."""
        dtype = np.uint64 if wide else np.uint32
        unsigned = self.graph.cast(x, dtype, name=f"{name}/unsigned")
        return self.graph.op(
            "BitShift", unsigned, self.graph.constant(bits, dtype, f"shift.{bits}"), name=name, direction="RIGHT"
        )

    def _constant_current(self, acc: str, branch: Branch, unit: Unit, name: str) -> str:
        """T · ((multiplier · acc + 2^(shift−1)) >> shift) of a constant branch, in the unit's type."""
        graph, shift, trailing = self.graph, branch.shift, len(unit.shape) - 1
        multiplier = thawed(branch.multiplier)
        load = row_sums(branch, unit.shape[0])
        largest = int((multiplier.double().abs() * load).max()) * self.program.sizes[branch.source]
        above = largest // 2**shift + 2  # added before the shift, and taken off after it: a shift of numbers ≥ 0
        if 2 * largest + 2 ** (shift + 2) >= 2**63:
            raise LoweringError(f"the products of {unit.name} with the image overflow 64 bits; scale the images down")
        factor = graph.constant(_per_channel(multiplier.numpy(), trailing), np.int64, f"{name}.multiplier")
        product = graph.op("Mul", acc, factor, name=f"{name}/scaled")
        up = graph.constant(above * 2**shift + 2 ** (shift - 1), np.int64, f"{name}.half")
        shifted = self._shifted(graph.op("Add", product, up, name=f"{name}/up"), shift, True, f"{name}/shifted")
        signed = graph.cast(shifted, np.int64, name=f"{name}/signed")
        current = graph.op("Sub", signed, graph.constant(above, np.int64, f"{name}.above"), name=f"{name}/current")
        steps = graph.constant(self.program.timesteps, np.int64, "timesteps")
        whole = graph.op("Mul", current, steps, name=f"{name}/total")
        return whole if unit.wide else graph.cast(whole, np.int32, name=f"{name}/int32")

    def structural(self, node: Structural) -> _Value:
        """A value mapped, pooled or flattened: in its source's type if numbers are moved, else in one that holds the sums."""
        x = self.values[node.source]
        if isinstance(node, (Flatten, MaxPool)) or (isinstance(node, Resample) and _moves(node)):
            return replace(x, name=place_node(self.graph, node, x.name, x.shape, x.dtype), shape=node.shape)
        largest = self.program.sizes[node.name] * (1 if node.name in self.program.constants else self.program.timesteps)
        dtype = np.int32 if largest < 2**31 else np.int64
        name = place_node(self.graph, node, self._cast(x, dtype, f"{node.name}/cast"), x.shape, dtype)
        return _Value(name, dtype, node.shape, 0 if x.low >= 0 and _is_positive(node) else -largest, largest)

    def head(self, head: Head, name: str) -> str:
        """bias + Σ accumulator · multiplier in float64, one operation after the other."""
        graph, trailing = self.graph, len(head.shape) - 1
        bias = thawed(head.bias).numpy()
        bias = bias if bias.ndim == len(head.shape) else _per_channel(bias, trailing)
        total = graph.constant(bias, np.float64, f"{name}.bias")
        for number, branch in enumerate(head.branches):
            at = f"{name}/branch{number}" if len(head.branches) > 1 else f"{name}/branch"
            whole = self.accumulate(branch, head.shape, at, wide=branch.after is not None)
            acc = graph.cast(whole, np.float64, name=f"{at}/float64")
            factor = graph.constant(_per_channel(thawed(branch.multiplier).numpy(), trailing), np.float64, f"{at}.multiplier")
            total = graph.op("Add", total, graph.op("Mul", acc, factor, name=f"{at}/scaled"), name=f"{name}/sum")
        return total


def _weight_digits(weight: Array) -> list[Array]:
    """A weight as digits in [−128, 128), smallest first; one for 8 bits."""
    found, rest = [], weight.astype(np.int32)
    while int(rest.min()) < -_ZERO or int(rest.max()) >= _ZERO:
        digit = (rest + _ZERO) % _DIGIT - _ZERO
        found.append(digit)
        rest = (rest - digit) // _DIGIT
    return [*found, rest]


def _per_channel(numbers: Array, trailing: int) -> Array:
    return numbers.reshape(-1, *(1 for _ in range(trailing)))


def _moves(node: Resample) -> bool:
    """Whether each place of the result is a place of the source."""
    axes = (node.map.rows, node.map.columns)
    return node.map.chooses and all(bool((thawed(axis.index) >= 0).all()) for axis in axes)


def _is_positive(node: Structural) -> bool:
    """Whether the sums have no negative weights."""
    return not isinstance(node, Resample) or all(bool((thawed(a.weight) >= 0).all()) for a in (node.map.rows, node.map.columns))
