"""The weight layers of an integer network by name: integer weights, multipliers, biases and thresholds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from nbsnn.errors import ConfigError, unknown
from nbsnn.integer.nodes import Branch, Head, Pair, Unit
from nbsnn.integer.program import Program


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """One weight layer, or what it does for one of the layers that it reads, and the neurons that it feeds.

    In each step a neuron's membrane gains multiplier · (weight ∗ spikes) from it. The neurons' bias is added once for all
    layers that feed them.

    Attributes:
        name: of the layer, such as "stage1.0.first.conv".
        neurons: name of the neurons that it feeds, such as "stage1.0.first.act"; None for the output.
        source: what it reads: the name of other neurons, a pool of them, or "image".
        weight: int8 or int16, [O, I/groups, kh, kw] or [O, I].
        multiplier: [O] integers; float64 in the output. Products with the image are rounded off by `shift` bits.
        bias: [O] or [*shape] integers, added to the membrane in each of the first T steps; float64 in the output.
        threshold: 2^F, in the membrane's unit; None for the output.
        height: what one spike of the neurons stands for, as a float; None for the output.
        shift: 0 unless it reads the image.
    """

    name: str
    neurons: str | None
    source: str
    weight: Tensor
    multiplier: Tensor
    bias: Tensor
    threshold: int | None
    height: float | None
    shift: int
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


class LayerTable(Mapping[str, IntegerLayer]):
    """Name → `IntegerLayer`, in the order of the program."""

    def __init__(self, layers: Mapping[str, IntegerLayer]) -> None:
        self._layers = dict(layers)

    def __getitem__(self, name: str) -> IntegerLayer:
        if name not in self._layers:
            raise ConfigError(unknown("weight layer", name, self._layers))
        return self._layers[name]

    def __contains__(self, name: object) -> bool:
        return name in self._layers

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        return f"LayerTable({', '.join(self._layers)})"


def layers_of(program: Program) -> LayerTable:
    """The weight layers of a program.

    A layer that reads a concatenation has a part for each source, named "merge:SOURCE"; files of earlier versions do not name
    layers, so theirs are named after the neurons.
    """
    nodes: tuple[Unit | Head, ...] = (*program.units, *program.heads)
    parts = [(node, branch) for node in nodes for branch in node.branches if branch.weight is not None]
    names = [branch.layer or node.name for node, branch in parts]
    named: dict[str, IntegerLayer] = {}
    for name, (node, branch) in zip(names, parts, strict=True):
        key = name if names.count(name) == 1 else f"{name}:{branch.source}"
        while key in named:
            key += "'"
        named[key] = _layer(key, node, branch)
    return LayerTable(named)


def _layer(name: str, node: Unit | Head, branch: Branch) -> IntegerLayer:
    unit = node if isinstance(node, Unit) else None
    assert branch.weight is not None
    return IntegerLayer(
        name, unit.name if unit else None, branch.source, branch.weight, branch.multiplier, node.bias,
        unit.threshold if unit else None, unit.height if unit else None, branch.shift,
        branch.stride, branch.padding, branch.dilation, branch.groups,
    )  # fmt: skip
