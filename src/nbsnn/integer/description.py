"""The units of an integer network as rows of a table."""

from dataclasses import asdict, dataclass
from math import log2
from typing import Any

import torch
from torch import Tensor

from nbsnn.integer.nodes import Branch
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
