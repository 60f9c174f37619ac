"""The parts of an integer network as the runtime's structures: nodes with their branches, heads and outputs."""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

from nbsnn.export.c.axes import Axis, as_axis, window_axis
from nbsnn.export.c.memory import Layout, Placed
from nbsnn.export.c.packing import pack_rows
from nbsnn.export.c.tables import Tables, braces, comment, fields
from nbsnn.integer.frozen import thawed
from nbsnn.integer.maps import PlaneMap
from nbsnn.integer.nodes import IMAGE, Branch, Flatten, Head, MaxPool, Node, Resample, SumPool, Unit
from nbsnn.integer.program import Program
from nbsnn.integer.readout import Part
from nbsnn.shapes import plane, window_places


class NetworkTables(Tables):
    """The tables of a program whose values are placed in memory.

    Attributes:
        row: weights of one output channel, of all branches, at most.
    """

    def __init__(self, prefix: str, program: Program, plan: Layout) -> None:
        super().__init__(prefix)
        self.program, self.plan = program, plan
        self.row = 1

    def network(self) -> tuple[tuple[int, ...], ...]:
        """Write everything, an `nbsnn_network` last; returns the shapes of the outputs."""
        program, p = self.program, self.prefix
        table = program.pixels.table
        tables = {"table": self.numbers("pixels", thawed(table), "i4")} if table is not None else {}
        nodes = [self.node(node, f"node{index}") for index, node in enumerate(self.plan.nodes)]
        heads = [self.head(head, f"head{index}") for index, head in enumerate(program.heads)]
        outputs, shapes = self.outputs()
        self.structures("nodes", "nbsnn_node", nodes)
        self.structures("heads", "nbsnn_node", heads)
        self.structures("outputs", "nbsnn_output", outputs)
        network = fields(
            timesteps=program.timesteps, node_count=len(nodes), head_count=len(heads), output_count=len(outputs),
            image=self.value(IMAGE), low=program.pixels.low, high=program.pixels.high, **tables,
            nodes=f"{p}_nodes", heads=f"{p}_heads", outputs=f"{p}_outputs",
        )  # fmt: skip
        self.structures("network", "nbsnn_network", [network], one=True)
        return shapes

    def value(self, name: str) -> str:
        return _value(self.plan.values[name])

    def node(self, node: Node, at: str) -> str:
        """An `nbsnn_node` of a node, after its tables."""
        self.lines.append(f"\n/* {comment(node.name)}: {'x'.join(map(str, node.shape))} */")
        result = self.value(node.name)
        if isinstance(node, Unit):
            bias = self.whole(f"{at}_bias", thawed(node.bias))
            return fields(
                type="NBSNN_UNIT", fraction_bits=node.fraction_bits, levels=node.levels, result=result, bias=bias,
                bias_per_element=int(node.bias.dim() > 1), **self.branches(node, at),
            )  # fmt: skip
        kind = "FLATTEN" if isinstance(node, Flatten) else "SUM"
        if isinstance(node, MaxPool):
            kind = "MIN" if node.lowest else "MAX"
        axes = None if isinstance(node, Flatten) else self.axes(f"{at}_axes", _axes_of(node))
        return fields(type=f"NBSNN_{kind}", source=self.value(node.source), result=result, axes=axes)

    def head(self, head: Head, at: str) -> str:
        """An `nbsnn_node` of a head."""
        self.lines.append(f"\n/* {at}: {'x'.join(map(str, head.shape))} */")
        bias = self.numbers(f"{at}_bias", thawed(head.bias), "f8")
        return fields(
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
            return fields(bits="NBSNN_SKIP", **known)
        weight = thawed(branch.weight)
        packed = pack_rows(weight)
        kernel = tuple(weight.shape[2:]) or (1, 1)
        if branch.after is not None:
            size = plane(self.program.shapes[branch.source])[1:]
            places = window_places(size, kernel, branch.stride, branch.padding, branch.dilation)
            known |= {"places": braces(places), "after": self.axes(f"{at}_after", _both(branch.after))}
        if len(packed.values):
            known["values"] = self.numbers(f"{at}_values", packed.values, "i2")
        return fields(
            weight=self.numbers(f"{at}_weight", packed.data, "u1"), bits=packed.bits, row=packed.row,
            row_bytes=packed.data.shape[1], groups=branch.groups, kernel=braces(kernel), stride=braces(branch.stride),
            padding=braces(branch.padding), dilation=braces(branch.dilation), **known,
        )  # fmt: skip

    def axes(self, name: str, axes: Iterable[Axis]) -> str:
        """Rows and columns of a map."""
        written = []
        for index, axis in enumerate(axes):
            known = {"places": axis.places, "reads": axis.reads}
            if axis.index is None:
                written.append(fields(**known, stride=axis.stride, start=axis.start, step=axis.step))
                continue
            tables = {"index": self.numbers(f"{name}_index{index}", axis.index, "i4")}
            if axis.weight is not None:
                tables["weight"] = self.numbers(f"{name}_weight{index}", axis.weight, "i2")
            written.append(fields(**known, **tables))
        return self.structures(name, "nbsnn_axis", written)

    def outputs(self) -> tuple[list[str], tuple[tuple[int, ...], ...]]:
        """`nbsnn_output`s and their shapes."""
        readout = self.program.readout
        if readout is None:
            whole = self.structures("output0_parts", "nbsnn_part", [fields(first=0)])
            shape = self.program.head.shape
            return [fields(size=prod(shape), part_count=1, parts=whole)], (shape,)
        first = [sum(prod(head.shape) for head in self.program.heads[:index]) for index in range(len(self.program.heads))]
        written = []
        for index, output in enumerate(readout.outputs):
            parts = [self.part(part, f"output{index}_{number}", first) for number, part in enumerate(output.parts)]
            known: dict[str, Any] = {"size": prod(output.shape), "part_count": len(parts)}
            if parts:
                known["parts"] = self.structures(f"output{index}_parts", "nbsnn_part", parts)
            if output.shift is not None:
                known["shift"] = self.numbers(f"output{index}_shift", thawed(output.shift), "f8")
            written.append(fields(**known))
        return written, tuple(output.shape for output in readout.outputs)

    def part(self, part: Part, at: str, first: Sequence[int]) -> str:
        """An `nbsnn_part` of an output; `first` has the place of each head's first number."""
        index = self.numbers(f"{at}_index", thawed(part.index), "i4")
        gain = None if part.gain is None else self.numbers(f"{at}_gain", thawed(part.gain), "f8")
        return fields(first=first[part.head], index=index, gain=gain)


def _value(value: Placed) -> str:
    channels, rows, columns = value.shape
    return fields(
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
