"""One layer of neurons as a NIR graph of integrators, thresholds and scales: our membranes, counts and spikes, step for step.

All numbers are in units of the firing threshold. An integrator begins at 0, so it holds the membrane less the initial half:
firing at half a threshold, with 1 taken off for each spike, is the same. NIR's thresholds are strict; membranes are multiples
of 2^−F, so a threshold half such a step lower is "at least". The edges into `reset` and `count` close the cycles: what
comes through them is of the step before. At rest each of those signals is 0.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbsnn.export.nir.graph import NirBuilder, NodeShape
from nbsnn.spiking.schedules import Neuron


def neurons(
    layer: str, shape: NodeShape, bias: NDArray[np.float64], *, step: float, levels: int, retract: float, neuron: Neuron,
    capped: bool, timesteps: int,
) -> Any:  # fmt: skip
    """A `nir.NIRGraph` from the currents of a layer to its spikes.

    Args:
        layer: its name, which is put into the graph's metadata.
        shape: of the layer.
        bias: [*shape], added in each of the first T steps.
        step: what membranes are multiples of.
        levels: the largest count if `capped`.
        retract: the membrane at which a published neuron cancels a spike.
        neuron: "signed" also emits −1.
        capped: the rule of the schedule "settle", which runs on after T steps; otherwise the published one.
        timesteps: T.
    """
    graph = NirBuilder()
    current = graph.input(shape)
    sources = [current]
    if bias.any():
        on = graph.one(shape, current)
        if capped:  # for T steps only
            on = graph.threshold("driven", shape, -(timesteps + 0.5), graph.integrator("clock", shape, on, r=-1.0))
        sources.append(graph.scale("bias", shape, bias, on))
    membrane = graph.integrator("membrane", shape, *sources)
    spikes = fire = graph.threshold("fire", shape, 0.5 - step / 2, membrane)
    if capped:
        spikes = fire = graph.threshold("allowed", shape, 0.5, fire)
    cancel = None
    if neuron == "signed":
        low = 0.5 + step / 2 if capped else 0.5 - retract - step / 2
        below = graph.threshold("below", shape, low, graph.scale("negative", shape, -1.0, membrane))
        cancel = graph.threshold("cancel", shape, 1.5, below)
        spikes = graph.scale("spikes", shape, 1.0, fire, graph.scale("minus", shape, -1.0, cancel))
    graph.connect([graph.scale("reset", shape, -1.0, spikes)], membrane)
    if capped or cancel is not None:
        count = graph.integrator("count", shape, spikes)
        if cancel is not None:
            graph.connect([graph.threshold("positive", shape, 0.5, count)], cancel)
        if capped:
            full = graph.threshold("full", shape, levels - 0.5, count)
            graph.connect([graph.scale("blocked", shape, -1.0, full)], fire)
    graph.output(shape, spikes)
    return graph.build(layer=layer)


def rounding(shape: NodeShape, *, largest: float, fraction_bits: int) -> Any:
    """A `nir.NIRGraph` that rounds to multiples of 2^−F, half up: bit after bit, each a threshold, the largest first.

    Args:
        shape: of the values.
        largest: their largest magnitude, in units of 2^−F.
        fraction_bits: F.
    """
    graph, bits = NirBuilder(), int(np.ceil(np.log2(largest + 2)))
    offset = graph.one(shape, value := graph.input(shape))
    rest = [value, graph.scale("offset", shape, 2.0**bits + 0.5, offset)]
    digits = []
    for bit in range(bits, -1, -1):
        rest = [graph.scale("rest", shape, 1.0, *rest)]
        one = graph.threshold("bit", shape, np.nextafter(2.0**bit, 0), *rest)
        if bit > 0:
            rest.append(graph.scale("taken", shape, -(2.0**bit), one))
        digits.append(graph.scale("digit", shape, 2.0 ** (bit - fraction_bits), one))
    digits.append(graph.scale("balance", shape, -(2.0 ** (bits - fraction_bits)), offset))
    graph.output(shape, graph.scale("rounded", shape, 1.0, *digits))
    return graph.build()
