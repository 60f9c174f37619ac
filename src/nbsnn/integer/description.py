"""What an integer network is made of, unit by unit, and what a spike costs in it."""

from dataclasses import asdict, dataclass
from math import log2
from typing import Any

import torch
from torch import Tensor

from nbsnn.integer.program import Branch, Head, Program, SumPool, Unit


@dataclass(frozen=True)
class UnitRow:
    """One unit (or the head): `shape`, weights of each branch in words, fraction bits F, the smallest multiplier of spikes
    over channels that have a gain (None if only the image feeds it), and the largest sum as a power of two.
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
    """A row for each unit, and one for the head."""
    rows = []
    for unit in program.units:
        smallest = [_smallest(b.multiplier) for b in unit.branches if b.source not in program.constants]
        known = [s for s in smallest if s is not None]
        bound = round(log2(unit.bound), 2)
        shown = _weights(unit.branches)
        rows.append(UnitRow(unit.name, unit.shape, shown, unit.fraction_bits, min(known, default=None), bound, unit.wide))
    rows.append(UnitRow("head", program.head.shape, _weights(program.head.branches), None, None, None))
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


def fan_outs(program: Program) -> dict[str, float]:
    """Unit → synapses that one of its spikes reaches, on average over its places; a pool passes spikes on."""
    reach: dict[str, float] = dict.fromkeys(program.shapes, 0.0)
    for node in (program.head, *reversed(program.nodes)):
        if isinstance(node, (Unit, Head)):
            for branch in node.branches:
                reach[branch.source] += _connections(program, branch, node.shape) / _size(program.shapes[branch.source])
        else:
            passed = 1.0
            if isinstance(node, SumPool):
                window = node.kernel[0] * node.kernel[1]
                passed = _size(node.shape) * window / _size(program.shapes[node.source])
            reach[node.source] += passed * reach[node.name]
    return {unit.name: reach[unit.name] for unit in program.units}


def _connections(program: Program, branch: Branch, shape: tuple[int, ...]) -> float:
    """Synapses of a branch, those to the padding left out."""
    if branch.weight is None:
        return _size(shape)
    if branch.weight.dim() == 2:
        return float(branch.weight.numel())
    places = torch.nn.functional.conv2d(
        torch.ones(1, 1, *program.shapes[branch.source][1:]), torch.ones(1, 1, *branch.weight.shape[2:]),
        stride=branch.stride, padding=branch.padding, dilation=branch.dilation,
    )  # fmt: skip
    return float(places.double().sum()) * branch.weight.shape[0] * branch.weight.shape[1]


def _size(shape: tuple[int, ...]) -> float:
    return float(torch.Size(shape).numel())
