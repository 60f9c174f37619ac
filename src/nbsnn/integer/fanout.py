"""Synapses: how many a spike reaches from each place, and the products of the same layers in the quantized network.

A synapse is a kernel element that connects to a neuron (fewer at borders and with strides), also with a weight of zero; a
selection of channels is a 1×1 kernel, and a skip one synapse without weight. A pool or another map of places passes a spike on
once per place that it adds to. A max pool passes on the changes of its maximum alone: these have a fan-out of their own, and
synapses behind the pool do not count for the spikes before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from nbsnn.integer.nodes import Branch, Flatten, Head, MaxPool, Node, Resample, SumPool, Unit
from nbsnn.integer.products import convolve
from nbsnn.integer.program import Program


@dataclass(frozen=True, eq=False)
class Synapses:
    """The synapses of a unit or a head.

    Attributes:
        neurons: places of the unit or the head.
        weighted: unit or max pool → [*shape] int64, the number of its synapses with a weight that a spike reaches from a place.
        plain: the same of skips, which have no weight.
        senders: the units and max pools that its branches read, once for each branch.
        macs: products of the quantized network in one pass, without those on padding; of the image's branches in `image_macs`.
        skips: additions of skips in one pass of the quantized network.
        weights: stored weights.
        changing: branches whose source changes in time.
        driven: whether there is a bias or a current of the image.
    """

    neurons: int
    weighted: dict[str, Tensor]
    plain: dict[str, Tensor]
    senders: tuple[str, ...]
    macs: int
    image_macs: int
    skips: int
    weights: int
    changing: int
    driven: bool


def readers(program: Program) -> Iterator[tuple[str, Unit | Head]]:
    """The units and heads, in order, by name: "head" if there is one, else "head 1" and so on."""
    for unit in program.units:
        yield unit.name, unit
    for number, head in enumerate(program.heads, start=1):
        yield "head" if len(program.heads) == 1 else f"head {number}", head


@torch.inference_mode(mode=False)
@torch.enable_grad()
def synapses(program: Program) -> dict[str, Synapses]:
    """Unit or head → its `Synapses`."""
    # Additions are linear in the spikes, so the cost of a spike is their gradient: exact for integers below 2^53.
    spikes = {node.name: torch.zeros(1, *node.shape, dtype=torch.float64, requires_grad=True) for node in program.sending}
    values = dict(spikes)
    for node in program.nodes:
        if node.name not in values and node.name not in program.constants and not isinstance(node, Unit):
            reached = replace(node, map=node.map.reach()) if isinstance(node, Resample) else node
            values[node.name] = reached.apply(values[node.source])
    return {name: _synapses(program, node, spikes, values) for name, node in readers(program)}


def _synapses(program: Program, node: Unit | Head, spikes: dict[str, Tensor], values: dict[str, Tensor]) -> Synapses:
    changing = [branch for branch in node.branches if branch.source not in program.constants]
    reach: dict[bool, dict[str, Tensor]] = {}
    for weighted in (True, False):
        taps = [_taps(b, values[b.source]) for b in changing if (b.weight is not None) == weighted]
        total = torch.stack(taps).sum() if taps else None
        leaves = list(spikes.values())
        found = () if total is None else torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
        reach[weighted] = {
            name: gradient[0].round().to(torch.int64)
            for name, gradient in zip(spikes, found, strict=False)
            if gradient is not None
        }
    products = {b: _products(b, program.shapes[b.source]) for b in node.branches if b.weight is not None}
    neurons = prod(node.shape)
    return Synapses(
        neurons=neurons, weighted=reach[True], plain=reach[False],
        senders=tuple(sender_of(program, branch.source) for branch in changing),
        macs=sum(count for branch, count in products.items() if branch in changing),
        image_macs=sum(count for branch, count in products.items() if branch not in changing),
        skips=neurons * sum(branch.weight is None for branch in changing),
        weights=sum(branch.weight.numel() for branch in node.branches if branch.weight is not None),
        changing=len(changing),
        driven=len(changing) < len(node.branches) or bool((node.bias != 0).any()),
    )  # fmt: skip


def fan_outs(program: Program) -> dict[str, Tensor]:
    """Unit or max pool → [*shape] int64: the synapses, including those of the head, that a spike reaches from each place."""
    total = {node.name: torch.zeros(node.shape, dtype=torch.int64) for node in program.sending}
    for found in synapses(program).values():
        for reach in (found.weighted, found.plain):
            for name, places in reach.items():
                total[name] = total[name] + places
    return total


def sender_of(program: Program, value: str) -> str:
    """The unit or max pool whose spikes a value is made of."""
    node: Node = program.by_name[value]
    while isinstance(node, (SumPool, Resample, Flatten)):
        node = program.by_name[node.source]
    return node.name


def unit_of(program: Program, value: str) -> str:
    """The unit whose spikes a value is made of, also behind max pools."""
    while isinstance(node := program.by_name[sender_of(program, value)], MaxPool):
        value = node.source
    return node.name


def _taps(branch: Branch, x: Tensor) -> Tensor:
    """The sum over all neurons and their kernel elements of x [1, ...]."""
    if branch.weight is None:
        return x.sum()
    reached = _over_kernel(branch, x)
    return (reached if branch.after is None else branch.after.reach().apply(reached)).sum() * _outputs_per_group(branch)


def _products(branch: Branch, shape: tuple[int, ...]) -> int:
    """Products of one pass, before a map of the places of their sums."""
    ones = torch.ones(1, *shape, dtype=torch.float64)
    return round(float(_over_kernel(branch, ones).sum())) * _outputs_per_group(branch)


def _over_kernel(branch: Branch, x: Tensor) -> Tensor:
    """[1, groups, ...]: sums of x over the kernel; all output channels of a group read the same inputs."""
    assert branch.weight is not None
    return convolve(x, x.new_ones(branch.groups, *branch.weight.shape[1:]), branch)


def _outputs_per_group(branch: Branch) -> int:
    assert branch.weight is not None
    return len(branch.weight) // branch.groups
