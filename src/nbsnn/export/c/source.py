"""The C source of an integer network: constant tables, and functions that run the runtime on them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from nbsnn.export.c.axes import Axis, as_axis, window_axis
from nbsnn.export.c.memory import Layout, Placed, plan_memory
from nbsnn.export.c.packing import pack_rows
from nbsnn.integer.frozen import thawed
from nbsnn.integer.maps import PlaneMap
from nbsnn.integer.nodes import IMAGE, Branch, Flatten, Head, MaxPool, Node, Resample, SumPool, Unit
from nbsnn.integer.program import Program
from nbsnn.shapes import plane, window_places

_WIDTH = 120  # columns of a line of numbers
_TYPES = {"u1": "uint8_t", "i2": "int16_t", "i4": "int32_t", "i8": "int64_t", "f8": "double"}
_STRUCTURES = {
    "nbsnn_axis": 28,
    "nbsnn_branch": 104,
    "nbsnn_node": 76,
    "nbsnn_part": 12,
    "nbsnn_output": 16,
    "nbsnn_network": 60,
}
"""Bytes of the runtime's structures where pointers have 32 bits."""


@dataclass(frozen=True)
class CSource:
    """The text of a header, and the memory that its network takes.

    Attributes:
        text: of the header.
        prefix: of all names in it.
        flash: bytes of all tables and of the structures that point to them, with 32-bit pointers; without the runtime's code.
        ram: bytes of the static buffers: values, one output channel's weights, and the heads' numbers.
        outputs: shapes of the outputs, which follow each other in the result.
    """

    text: str
    prefix: str
    flash: int
    ram: int
    outputs: tuple[tuple[int, ...], ...]


def c_source(program: Program, name: str) -> CSource:
    """The header of a program; `name` is that of the file."""
    prefix = _identifier(name)
    writer = _Writer(prefix, program, plan_memory(program))
    return writer.source(name)


def _identifier(name: str) -> str:
    """A name as a C identifier."""
    found = re.sub(r"\W", "_", name, flags=re.ASCII)
    return found if re.match(r"(?!nbsnn)[A-Za-z]", found, re.IGNORECASE) else f"net_{found}"


def _comment(text: str) -> str:
    """A text that a comment may hold."""
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in text).replace("*/", "* /").replace("/*", "/ *")


def _literal(number: Any, kind: str) -> str:
    if kind == "f8":
        return float(number).hex()
    if kind == "i8":
        return f"INT64_C({int(number)})"
    return "-2147483647 - 1" if int(number) == -(2**31) else str(int(number))


def _fields(**values: Any) -> str:
    """A designated initializer."""
    return "{" + ", ".join(f".{key} = {value}" for key, value in values.items() if value is not None) + "}"


def _pair(values: Iterable[int]) -> str:
    return "{" + ", ".join(map(str, values)) + "}"


@dataclass
class _Writer:
    """Collects tables and initializers."""

    prefix: str
    program: Program
    plan: Layout
    lines: list[str] = field(default_factory=list)
    flash: int = 0
    row: int = 1  # weights of the output channel that is worked on, of all branches

    def source(self, name: str) -> CSource:
        """Everything, in order."""
        program, p = self.program, self.prefix
        table = program.pixels.table
        tables = {"table": self.numbers("pixels", thawed(table), "i4")} if table is not None else {}
        nodes = [self.node(node, f"node{index}") for index, node in enumerate(self.plan.nodes)]
        heads = [self.head(head, f"head{index}") for index, head in enumerate(program.heads)]
        outputs, shapes = self.outputs()
        self.structures("nodes", "nbsnn_node", nodes)
        self.structures("heads", "nbsnn_node", heads)
        self.structures("outputs", "nbsnn_output", outputs)
        network = _fields(
            timesteps=program.timesteps, node_count=len(nodes), head_count=len(heads), output_count=len(outputs),
            image=self.value(IMAGE), low=program.pixels.low, high=program.pixels.high, **tables,
            nodes=f"{p}_nodes", heads=f"{p}_heads", outputs=f"{p}_outputs",
        )  # fmt: skip
        self.structures("network", "nbsnn_network", [network], one=True)
        numbers = sum(prod(head.shape) for head in program.heads)
        ram = self.plan.bytes + 2 * self.row + 8 * numbers
        channels, rows, columns = plane(program.pixels.shape)
        text = _TEXT.format(
            name=_comment(name), version=metadata.version("nbsnn"), p=p, P=p.upper(), tables="\n".join(self.lines),
            channels=channels, rows=rows, columns=columns,
            elements=prod(program.pixels.shape), outputs=sum(map(prod, shapes)), flash=self.flash, ram=ram,
            memory=self.plan.bytes, row=self.row, numbers=numbers, timesteps=program.timesteps,
            fraction=program.pixels.fraction_bits, shapes=" ".join("x".join(map(str, shape)) or "1" for shape in shapes),
            units=len(program.units), run=_PIXELS.format(p=p) if table is not None else "",
        )  # fmt: skip
        return CSource(text, p, self.flash, ram, shapes)

    # ------------------------------------------------------------------------------------------------------------ tables

    def numbers(self, name: str, values: Tensor | np.ndarray[Any, Any], kind: str) -> str:
        """A table of numbers of a type in `_TYPES`; returns its name."""
        array = np.asarray(values.cpu().numpy() if isinstance(values, Tensor) else values).reshape(-1)
        self.flash += len(array) * int(kind[1])
        self.lines += [f"static const {_TYPES[kind]} {self.prefix}_{name}[{len(array)}] = {{", *_wrapped(array, kind), "};"]
        return f"{self.prefix}_{name}"

    def whole(self, name: str, values: Tensor) -> str:
        """An `nbsnn_numbers`."""
        narrow = bool((values.abs() < 2**31).all())
        table = self.numbers(name, values, "i4" if narrow else "i8")
        return _fields(**{"narrow" if narrow else "wide": table})

    def structures(self, name: str, kind: str, items: Sequence[str], *, one: bool = False) -> str:
        """A table of structures, or one alone; returns its name."""
        self.flash += len(items) * _STRUCTURES[kind]
        head = f"static const {kind} {self.prefix}_{name}"
        self.lines += [f"{head} = {items[0]};"] if one else [f"{head}[{len(items)}] = {{", *(f"    {i}," for i in items), "};"]
        return f"{self.prefix}_{name}"

    # ------------------------------------------------------------------------------------------------------------- nodes

    def value(self, name: str) -> str:
        return _value(self.plan.values[name])

    def node(self, node: Node, at: str) -> str:
        """An `nbsnn_node` of a node, after its tables."""
        self.lines.append(f"\n/* {_comment(node.name)}: {'x'.join(map(str, node.shape))} */")
        result = self.value(node.name)
        if isinstance(node, Unit):
            bias = self.whole(f"{at}_bias", thawed(node.bias))
            return _fields(
                type="NBSNN_UNIT", fraction_bits=node.fraction_bits, levels=node.levels, result=result, bias=bias,
                bias_per_element=int(node.bias.dim() > 1), **self.branches(node, at),
            )  # fmt: skip
        kind = "FLATTEN" if isinstance(node, Flatten) else "SUM"
        if isinstance(node, MaxPool):
            kind = "MIN" if node.lowest else "MAX"
        axes = None if isinstance(node, Flatten) else self.axes(f"{at}_axes", _axes_of(node))
        return _fields(type=f"NBSNN_{kind}", source=self.value(node.source), result=result, axes=axes)

    def head(self, head: Head, at: str) -> str:
        """An `nbsnn_node` of a head."""
        self.lines.append(f"\n/* {at}: {'x'.join(map(str, head.shape))} */")
        bias = self.numbers(f"{at}_bias", thawed(head.bias), "f8")
        return _fields(
            type="NBSNN_UNIT", result=_value(Placed(0, _shape(head.shape), "I64", False)), head_bias=bias,
            bias_per_element=int(head.bias.dim() > 1), **self.branches(head, at),
        )  # fmt: skip

    def branches(self, node: Unit | Head, at: str) -> dict[str, Any]:
        """Fields of a node: its branches and their number."""
        written = [self.branch(branch, node, f"{at}_{index}") for index, branch in enumerate(node.branches)]
        self.row = max(self.row, sum(_row(branch) for branch in node.branches))
        return {"branches": self.structures(f"{at}_branches", "nbsnn_branch", written), "branch_count": len(written)}

    def branch(self, branch: Branch, node: Unit | Head, at: str) -> str:
        multiplier = thawed(branch.multiplier)
        gain = {"scale": self.numbers(f"{at}_scale", multiplier, "f8")} if isinstance(node, Head) else {
            "gain": self.whole(f"{at}_gain", multiplier)}  # fmt: skip
        known: dict[str, Any] = {"source": self.value(branch.source), "outputs": node.shape[0], "shift": branch.shift, **gain}
        if branch.weight is None:
            return _fields(bits="NBSNN_SKIP", **known)
        weight = thawed(branch.weight)
        packed = pack_rows(weight)
        kernel = tuple(weight.shape[2:]) or (1, 1)
        if branch.after is not None:
            size = plane(self.program.shapes[branch.source])[1:]
            places = window_places(size, kernel, branch.stride, branch.padding, branch.dilation)
            known |= {"places": _pair(places), "after": self.axes(f"{at}_after", _both(branch.after))}
        if len(packed.values):
            known["values"] = self.numbers(f"{at}_values", packed.values, "i2")
        return _fields(
            weight=self.numbers(f"{at}_weight", packed.data, "u1"), bits=packed.bits, row=packed.row,
            row_bytes=packed.data.shape[1], groups=branch.groups, kernel=_pair(kernel), stride=_pair(branch.stride),
            padding=_pair(branch.padding), dilation=_pair(branch.dilation), **known,
        )  # fmt: skip

    def axes(self, name: str, axes: Iterable[Axis]) -> str:
        """Rows and columns of a map."""
        written = []
        for index, axis in enumerate(axes):
            known = {"places": axis.places, "reads": axis.reads}
            if axis.index is None:
                written.append(_fields(**known, stride=axis.stride, start=axis.start, step=axis.step))
                continue
            tables = {"index": self.numbers(f"{name}_index{index}", axis.index, "i4")}
            if axis.weight is not None:
                tables["weight"] = self.numbers(f"{name}_weight{index}", axis.weight, "i2")
            written.append(_fields(**known, **tables))
        return self.structures(name, "nbsnn_axis", written)

    def outputs(self) -> tuple[list[str], tuple[tuple[int, ...], ...]]:
        """`nbsnn_output`s and their shapes."""
        readout = self.program.readout
        if readout is None:
            whole = self.structures("output0_parts", "nbsnn_part", [_fields(first=0)])
            shape = self.program.head.shape
            return [_fields(size=prod(shape), part_count=1, parts=whole)], (shape,)
        first = [sum(prod(head.shape) for head in self.program.heads[:index]) for index in range(len(self.program.heads))]
        written = []
        for index, output in enumerate(readout.outputs):
            parts: list[str] = []
            for number, part in enumerate(output.parts):
                at = f"output{index}_{number}"
                fields: dict[str, Any] = {
                    "first": first[part.head],
                    "index": self.numbers(f"{at}_index", thawed(part.index), "i4"),
                }
                if part.gain is not None:
                    fields["gain"] = self.numbers(f"{at}_gain", thawed(part.gain), "f8")
                parts.append(_fields(**fields))
            known: dict[str, Any] = {"size": prod(output.shape), "part_count": len(parts)}
            if parts:
                known["parts"] = self.structures(f"output{index}_parts", "nbsnn_part", parts)
            if output.shift is not None:
                known["shift"] = self.numbers(f"output{index}_shift", thawed(output.shift), "f8")
            written.append(_fields(**known))
        return written, tuple(output.shape for output in readout.outputs)


def _value(value: Placed) -> str:
    channels, rows, columns = value.shape
    return _fields(
        offset=value.offset, channels=channels, rows=rows, columns=columns, kind=f"NBSNN_{value.kind}",
        constant=int(value.constant),
    )  # fmt: skip


def _shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, rows, columns = plane(shape)
    return channels, rows, columns


def _row(branch: Branch) -> int:
    """Weights of an output channel."""
    return 0 if branch.weight is None else prod(branch.weight.shape[1:])


def _both(change: PlaneMap) -> tuple[Axis, Axis]:
    return as_axis(change.rows), as_axis(change.columns)


def _axes_of(node: Node) -> tuple[Axis, Axis]:
    if isinstance(node, (Resample, MaxPool)):
        return _both(node.map)
    assert isinstance(node, SumPool)
    sides = zip(plane(node.shape)[1:], node.kernel, node.stride, node.padding, strict=True)
    rows, columns = (window_axis(*side) for side in sides)
    return rows, columns


def _wrapped(array: np.ndarray[Any, Any], kind: str) -> list[str]:
    """Lines of numbers."""
    lines, line = [], "   "
    for number in array.tolist():
        text = f" {_literal(number, kind)},"
        if len(line) + len(text) > _WIDTH:
            lines.append(line)
            line = "   "
        line += text
    return [*lines, line]


_PIXELS = """
/* 8-bit pixels [channels, rows, columns] to the network's outputs. */
static inline void {p}_run(const uint8_t *pixels, float *result)
{{
    nbsnn_run(&{p}_network, pixels, NULL, {p}_memory, {p}_row, {p}_numbers, result);
}}
"""
_TEXT = """/* {name}: an integer network, written by nbsnn {version} in its format "c".
 *
 * {units} units, T = {timesteps}. The counts of its neurons, and its outputs bit for bit, are those of nbsnn's engine "counts".
 * Include this file in one C file. One call at a time: the buffers below are shared.
 *
 * Image: {channels}x{rows}x{columns}. Outputs, one after the other: {shapes}.
 */
#ifndef NBSNN_{P}_H
#define NBSNN_{P}_H

#include "nbsnn_runtime.h"

#define {P}_CHANNELS {channels}
#define {P}_ROWS {rows}
#define {P}_COLUMNS {columns}
#define {P}_PIXELS {elements} /* elements of an image */
#define {P}_OUTPUTS {outputs} /* elements of all outputs */
#define {P}_FRACTION_BITS {fraction} /* of an image as integers */
#define {P}_FLASH {flash} /* bytes of tables, with 32-bit pointers */
#define {P}_RAM {ram} /* bytes of buffers */

{tables}

static uint8_t {p}_memory[{memory}];
static int16_t {p}_row[{row}];
static double {p}_numbers[{numbers}];
{run}
/* The same for an image of normalized values, each as the integer nearest to value * 2^{fraction}. */
static inline void {p}_run_integers(const int32_t *image, float *result)
{{
    nbsnn_run(&{p}_network, NULL, image, {p}_memory, {p}_row, {p}_numbers, result);
}}

#endif
"""
