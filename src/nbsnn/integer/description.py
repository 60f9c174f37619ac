"""The units of an integer network as rows of a table, and the fan-out of spikes."""

from dataclasses import asdict, dataclass, replace
from math import log2
from typing import Any

import torch
from torch import Tensor

from nbsnn.integer.nodes import Branch, Head, Resample, Unit
from nbsnn.integer.products import convolve
from nbsnn.integer.program import Program


@dataclass(frozen=True)
class UnitRow:
    """One unit (or the head): `shape`, a description of each branch's weights, fraction bits F, the smallest multiplier of
    spikes over channels that have a gain (None if only the image feeds it), and the largest sum as a power of two.
    """

    name: str
    shape: tuple[int, ...]
    weights: str
    fraction_bits: int | None
    smallest_multiplier: int | None
    bound_bits: float | None
    wide: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def describe_units(program: Program) -> list[UnitRow]:
    """A row for each unit, and one for each head."""
    rows = []
    for unit in program.units:
        smallest = [_smallest(b.multiplier) for b in unit.branches if b.source not in program.constants]
        known = [s for s in smallest if s is not None]
        bound = round(log2(unit.bound), 2)
        shown = _weights(unit.branches)
        rows.append(UnitRow(unit.name, unit.shape, shown, unit.fraction_bits, min(known, default=None), bound, unit.wide))
    for number, head in enumerate(program.heads, start=1):
        name = "head" if len(program.heads) == 1 else f"head {number}"
        rows.append(UnitRow(name, head.shape, _weights(head.branches), None, None, None))
    return rows


def _smallest(multiplier: Tensor) -> int | None:
    there = multiplier[multiplier != 0].abs()
    return int(there.min()) if len(there) else None


def _weights(branches: tuple[Branch, ...]) -> str:
    def words(weight: Tensor | None) -> str:
        if weight is None:
            return "skip"
        return f"{str(weight.dtype).removeprefix('torch.')} ±{int(weight.to(torch.int32).abs().max())}"

    return " + ".join(words(branch.weight) for branch in branches)


@torch.inference_mode(mode=False)
@torch.enable_grad()
def fan_outs(program: Program) -> dict[str, Tensor]:
    """Unit or max pool → [*shape] int64: number of synapses, including those of the head, that a spike reaches from each place.

    A synapse is a kernel element that connects to a neuron (fewer at borders and with strides), also with a weight of zero; a
    selection of channels is a 1×1 kernel. A pool or another map of places passes a spike on once per place that it adds
    to. A max pool passes on the changes of its maximum alone: these have a fan-out of their own, and synapses behind the pool
    do not count for the spikes before it.
    """
    # Additions are linear in the spikes, so the cost of a spike is their gradient: exact for integers below 2^53.
    spikes = {node.name: torch.zeros(1, *node.shape, dtype=torch.float64, requires_grad=True) for node in program.sending}
    values, additions = dict(spikes), torch.zeros((), dtype=torch.float64)
    for node in (*program.nodes, *program.heads):
        if isinstance(node, (Unit, Head)):
            for branch in node.branches:
                if branch.source not in program.constants:
                    additions = additions + _taps(branch, values[branch.source])
        elif node.name not in values and node.name not in program.constants:
            reached = replace(node, map=node.map.reach()) if isinstance(node, Resample) else node
            values[node.name] = reached.apply(values[node.source])
    gradients = torch.autograd.grad(additions, list(spikes.values()), materialize_grads=True)
    return {name: gradient[0].round().to(torch.int64) for name, gradient in zip(spikes, gradients, strict=True)}


def unit_of(program: Program, value: str) -> str:
    """The unit whose spikes a value is made of."""
    while not isinstance(node := program.by_name[value], Unit):
        value = node.source
    return value


def _taps(branch: Branch, x: Tensor) -> Tensor:
    """The sum over all neurons and their kernel elements of x [1, ...]."""
    if branch.weight is None:
        return x.sum()
    outputs, groups = len(branch.weight), branch.groups
    # All output channels of a group read the same inputs.
    one = x.new_ones(groups, *branch.weight.shape[1:])
    reached = convolve(x, one, branch)
    return (reached if branch.after is None else branch.after.reach().apply(reached)).sum() * (outputs // groups)
