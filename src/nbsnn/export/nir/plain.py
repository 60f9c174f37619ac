"""The profile "if": an integer network as plain integrate-and-fire neurons between convolutions, for the widest reach.

Only Conv1d, Conv2d, Affine, Flatten and IF are used, which all importers know. Thresholds and r are 1, so a step lasts one unit
of time. The image is shown in all T steps; the mean of the output over them is the logits.
"""

from typing import Any

from torch import Tensor

from nbsnn.errors import LoweringError
from nbsnn.export.nir.graph import NirBuilder
from nbsnn.export.nir.synapses import add_branch, add_flatten, add_map, add_sum, add_sum_pool
from nbsnn.integer.frozen import thawed
from nbsnn.integer.nodes import IMAGE, Flatten, Head, MaxPool, Node, SumPool, Unit
from nbsnn.integer.program import Program


def plain_graph(program: Program, *, charged: bool) -> Any:
    """A `nir.NIRGraph` of a whole program with unsigned neurons.

    Args:
        program: the network.
        charged: neurons are given half a threshold before the first step, which a NIR file cannot say; otherwise it is spread
            over the T steps as part of the bias.
    Raises:
        LoweringError: plain neurons or NIR cannot express a layer.
    """
    graph, values = NirBuilder(plain=True), dict[str, str]()
    values[IMAGE] = graph.input(program.pixels.shape)
    for node in program.nodes:
        values[node.name] = _add(graph, program, node, values, charged=charged)
    head, T = program.head, program.timesteps
    gains = [thawed(branch.multiplier).double() * T for branch in head.branches]
    outputs = _add_currents(graph, program, head, values, gains, thawed(head.bias).double())
    if len(outputs) > 1:  # of a concatenation; executors do not add up what comes to an output
        outputs = [add_sum(graph, head.name, head.shape, outputs)]
    graph.output(head.shape, outputs[0])
    profile = "if-charged" if charged else "if"
    return graph.build(profile=profile, timesteps=T)  # notes for people and for nbsnn.load_nir


def _add(graph: NirBuilder, program: Program, node: Node, values: dict[str, str], *, charged: bool) -> str:
    if isinstance(node, Unit):
        bias = thawed(node.bias).double() / 2.0**node.fraction_bits
        currents = _add_currents(
            graph, program, node, values, _gains(program, node), bias if charged else bias + 0.5 / program.timesteps
        )
        return graph.fire(node.name, node.shape, *currents)
    source = values[node.source], program.shapes[node.source]
    if isinstance(node, MaxPool):
        raise LoweringError(
            f"{node.name} is a max pool, which plain neurons cannot express; use profile='exact', or train with average pools"
        )
    if isinstance(node, Flatten):
        return add_flatten(graph, node.name, source)
    if isinstance(node, SumPool):
        return add_sum_pool(graph, node.name, source, node)
    return add_map(graph, node.name, source, node.map, node.shape)


def _gains(program: Program, unit: Unit) -> list[Tensor]:
    """The gain of each branch's accumulator, [O], in units of the threshold; the image's is not rounded."""
    gains = []
    for branch in unit.branches:
        bits = program.pixels.fraction_bits - branch.shift if branch.source in program.constants else 0
        gains.append(thawed(branch.multiplier).double() * 2.0 ** (bits - unit.fraction_bits))
    return gains


def _add_currents(
    graph: NirBuilder, program: Program, node: Unit | Head, values: dict[str, str], gains: list[Tensor], bias: Tensor
) -> list[str]:
    """The currents of a layer, one node per branch; the first has the bias."""
    if bias.dim() > 1:
        raise LoweringError(
            f"{node.name} has a bias that differs from place to place, which plain neurons cannot express; use profile='exact'"
        )
    added = [bias.expand(node.shape[0]).contiguous().numpy()] + [None] * len(gains)
    return [
        add_branch(
            graph, f"{node.name}.current{number}", branch, (values[branch.source], program.shapes[branch.source]), node.shape,
            gain, added[number],
        )
        for number, (branch, gain) in enumerate(zip(node.branches, gains, strict=True))
    ]  # fmt: skip
