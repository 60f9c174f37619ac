"""Networks with the same weights and different activity. For `benchmarks/inference.py --sweep`."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from nbsnn.integer.network import IntegerNetwork, Result
from nbsnn.integer.nodes import Unit
from nbsnn.integer.program import Program

WANTED = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # shares of neurons that fire in a step
_HALVINGS = 8  # of the interval of shifts; leaves 2^-7 thresholds


def at_activities(network: IntegerNetwork, images: Tensor) -> Iterator[tuple[float, IntegerNetwork]]:
    """The network with the biases of all units shifted equally until the wanted share of neurons fires, and that share.

    Its predictions are not meaningful.

    Args:
        network: with its options, which determine the spikes that are counted.
        images: [B, C, H, W] normalized, to measure the share.
    """
    for wanted in WANTED:
        low, high = -1.0, 1.0  # thresholds per step
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            changed = IntegerNetwork(_shifted(network.program, middle), **network.options)
            share = activity(changed, changed.simulate(images, **changed.options))
            low, high = (middle, high) if share < wanted else (low, middle)
        yield share, changed


def activity(network: IntegerNetwork, result: Result) -> float:
    """Share of the network's neurons that fire in a step of T, on average over the images of a result."""
    neurons = sum(torch.Size(unit.shape).numel() for unit in network.program.units)
    fired = sum(float(spikes.sum()) for spikes in result.spikes.values())
    return fired / (neurons * network.timesteps * len(result.logits))


def _shifted(program: Program, thresholds: float) -> Program:
    nodes = tuple(
        replace(node, bias=node.bias + round(thresholds * 2**node.fraction_bits)) if isinstance(node, Unit) else node
        for node in program.nodes
    )
    return replace(program, nodes=nodes)
