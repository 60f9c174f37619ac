"""The profile "exact": an integer network as a NIR graph that fires the same spikes in every step.

Membranes and spikes are those of the integer network, in units of a layer's threshold; all are multiples of 2^−F and exact in
double precision. Executors show the image in steps 1 to T, and zeros after; a step lasts one unit of time. The output is the
sum so far: after the last step, the logits.
"""

from typing import Any

import torch
from torch import Tensor

from nbsnn.export.nir.graph import NirBuilder, NodeShape, by_channel
from nbsnn.export.nir.maxima import max_pool_graph
from nbsnn.export.nir.neurons import neurons, rounding
from nbsnn.export.nir.synapses import add_branch, add_flatten, add_map, add_sum, add_sum_pool
from nbsnn.integer.bounds import row_sums
from nbsnn.integer.frozen import thawed
from nbsnn.integer.nodes import IMAGE, Branch, Flatten, Head, MaxPool, SumPool, Unit
from nbsnn.integer.program import Program
from nbsnn.spiking.functional import capped_rule
from nbsnn.spiking.schedules import Neuron, schedule_named


def exact_graph(program: Program, *, neuron: Neuron, schedule: str) -> Any:
    """A `nir.NIRGraph` of a whole program.

    Raises:
        LoweringError: NIR cannot express a layer.
    """
    graph, values = NirBuilder(), dict[str, str]()
    values[IMAGE] = graph.input(program.pixels.shape)
    for node in program.nodes:
        if isinstance(node, Unit):
            values[node.name] = _add_unit(graph, program, node, values, neuron=neuron, schedule=schedule)
            continue
        source = values[node.source], program.shapes[node.source]
        if isinstance(node, Flatten):
            values[node.name] = add_flatten(graph, node.name, source)
        elif isinstance(node, SumPool):
            values[node.name] = add_sum_pool(graph, node.name, source, node)
        elif isinstance(node, MaxPool):
            inner = max_pool_graph(node, source[1], most=program.timesteps)
            values[node.name] = graph.add(node.name, inner, source[0])
        else:
            values[node.name] = add_map(graph, node.name, source, node.map, node.shape)
    _add_head(graph, program, program.head, values)
    return graph.build()


def _add_unit(graph: NirBuilder, program: Program, unit: Unit, values: dict[str, str], *, neuron: Neuron, schedule: str) -> str:
    currents = []
    for number, branch in enumerate(unit.branches):
        source = values[branch.source], program.shapes[branch.source]
        name = f"{unit.name}.current{number}"
        if branch.source in program.constants:
            gain = thawed(branch.multiplier).double() * 2.0 ** (program.pixels.fraction_bits - branch.shift)
            exact = add_branch(graph, name, branch, source, unit.shape, gain)
            largest = _largest(branch, program, len(branch.multiplier))
            inner = rounding(unit.shape, largest=largest, fraction_bits=unit.fraction_bits)
            currents.append(graph.add(f"{name}.rounded", inner, exact))
        else:
            gain = thawed(branch.multiplier).double() / 2.0**unit.fraction_bits
            currents.append(add_branch(graph, name, branch, source, unit.shape, gain))
    one = 2.0**unit.fraction_bits
    bias = by_channel(thawed(unit.bias).double().numpy() / one, unit.shape)
    inner = neurons(
        unit.name, unit.shape, bias, step=1 / one, levels=unit.levels, retract=unit.retract / one, neuron=neuron,
        capped=schedule_named(schedule).rule is capped_rule, timesteps=program.timesteps,
    )  # fmt: skip
    return graph.add(unit.name, inner, *currents)


def _largest(branch: Branch, program: Program, channels: int) -> float:
    """The largest magnitude of a constant branch's current, in the membrane's unit."""
    loads = row_sums(branch, channels) * program.sizes[branch.source]
    return float((loads * thawed(branch.multiplier).double()).max()) / 2.0**branch.shift


def _add_head(graph: NirBuilder, program: Program, head: Head, values: dict[str, str]) -> None:
    """Sums of all steps as integers, then the gains, as in the integer network."""
    parts: list[str] = []
    for number, branch in enumerate(head.branches):
        source = values[branch.source], program.shapes[branch.source]
        one: Tensor = torch.ones_like(thawed(branch.multiplier))
        step = add_branch(graph, f"{head.name}.sum{number}", branch, source, head.shape, one)
        total = graph.integrator(f"{head.name}.total{number}", head.shape, step)
        if not parts:
            parts.append(_add_bias(graph, head, total))
        parts.append(graph.scale(f"{head.name}.scaled{number}", head.shape, _by_channel(branch.multiplier, head.shape), total))
    graph.output(head.shape, add_sum(graph, head.name, head.shape, parts))


def _add_bias(graph: NirBuilder, head: Head, source: str) -> str:
    return graph.scale(f"{head.name}.bias", head.shape, _by_channel(head.bias, head.shape), graph.one(head.shape, source))


def _by_channel(numbers: Tensor, shape: NodeShape) -> Any:
    return by_channel(thawed(numbers).double().numpy(), shape)
