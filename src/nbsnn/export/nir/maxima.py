"""Max and min pools as NIR graphs: the change, in each step, of the largest count of each window.

NIR has no maximum. But of counts from 0 to L the largest is the number of levels j = 1..L that any of them has reached, which
thresholds and sums over windows give.
"""

from typing import Any

import numpy as np
import torch

from nbsnn.export.nir.graph import NirBuilder, NodeShape
from nbsnn.export.nir.synapses import add_windows
from nbsnn.integer.nodes import MaxPool
from nbsnn.shapes import plane


def max_pool_graph(pool: MaxPool, shape: NodeShape, *, most: int) -> Any:
    """A `nir.NIRGraph` from the spikes of neurons to −1, 0 or 1.

    Args:
        pool: the pool.
        shape: of its source.
        most: the largest count of its source.
    """
    graph = NirBuilder()
    count = graph.integrator("count", shape, graph.input(shape))
    enough = 0.5 if not pool.lowest else _places(pool, shape) - 0.5
    reached = []
    for level in range(1, most + 1):
        one = graph.threshold("above", shape, level - 0.5, count)
        key, have = add_windows(graph, "window", (one, shape), pool.map)
        reached.append(graph.threshold("reached", have, enough, key))
    change = graph.scale("change", pool.shape, 1.0, *reached)
    before = graph.integrator("before", pool.shape, change)
    graph.connect([graph.scale("minus", pool.shape, -1.0, before)], change)
    graph.output(pool.shape, change)
    return graph.build(layer=pool.name)


def _places(pool: MaxPool, shape: NodeShape) -> np.ndarray[Any, Any]:
    """Places in each window, fewer at borders."""
    ones = torch.ones(1, *plane(shape))
    return pool.map.reach().apply(ones).reshape(pool.shape).double().numpy()
