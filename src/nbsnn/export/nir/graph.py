"""A NIR graph under construction: nodes by unique names, and edges; all numbers in double precision."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nbsnn.interop.nirfile import nir_package, node_name

NodeShape = tuple[int, ...]


class NirBuilder:
    """Nodes and edges of a `nir.NIRGraph`; sources are added before what reads them.

    Names begin with a number, so that their alphabetical order, in which files are read, is this order. nirtorch depends on
    it: it cuts a cycle where it first meets a node whose input is not known yet, which decides the edges that carry the step
    before, and it cannot put off a graph inside a graph.

    Args:
        plain: use nodes that all importers know, and no others.
    """

    def __init__(self, *, plain: bool = False) -> None:
        self.nir, self.plain = nir_package(), plain
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []

    def add(self, name: str, node: Any, *sources: str) -> str:
        """Add a node, whose input is the sum of its sources, and return its name in the graph."""
        return self._put(node_name(f"n{len(self.nodes):04}_{name}"), node, *sources)

    def _put(self, key: str, node: Any, *sources: str) -> str:
        self.nodes[key] = node
        self.connect(sources, key)
        return key

    def connect(self, sources: Iterable[str], target: str) -> None:
        """Add edges into a node, such as those that close a cycle."""
        self.edges += [(source, target) for source in sources]

    def input(self, shape: NodeShape) -> str:
        return self._put("input", self.nir.Input({"input": np.array(shape)}))

    def output(self, shape: NodeShape, source: str) -> str:
        """The output; it has one source, since executors do not add up what comes to it."""
        return self._put("output", self.nir.Output({"output": np.array(shape)}), source)

    def scale(self, name: str, shape: NodeShape, factor: ArrayLike, *sources: str) -> str:
        """Sources times a factor: one number, or one per element of the shape's last axes."""
        return self.add(name, self.nir.Scale(_filled(shape, factor)), *sources)

    def threshold(self, name: str, shape: NodeShape, level: ArrayLike, *sources: str) -> str:
        """1 where the sources' sum is above the level, otherwise 0."""
        return self.add(name, self.nir.Threshold(_filled(shape, level)), *sources)

    def integrator(self, name: str, shape: NodeShape, *sources: str, r: float = 1.0) -> str:
        """The sum over time of the sources, that of this step included."""
        return self.add(name, self.nir.I(_filled(shape, r)), *sources)

    def linear(self, name: str, weight: Tensor, bias: NDArray[np.float64] | None, source: str) -> str:
        """weight [O, I] times the source, plus a bias [O]."""
        matrix = weight.contiguous().numpy()
        if bias is None and not self.plain:
            return self.add(name, self.nir.Linear(matrix), source)
        return self.add(name, self.nir.Affine(matrix, np.zeros(len(matrix)) if bias is None else bias), source)

    def fire(self, name: str, shape: NodeShape, *sources: str) -> str:
        """Integrate-and-fire neurons with a threshold of 1, as NIR has them."""
        one = _filled(shape, 1.0)
        node = self.nir.IF(r=one, v_threshold=one.copy())  # v_reset is 0, or in files before 1.0.6 unknown
        node.metadata = {"layer": name}  # in files before 1.0.6, which have no metadata, it is not written
        return self.add(name, node, *sources)

    def one(self, shape: NodeShape, source: str) -> str:
        """1 in each step, made from any signal of this shape."""
        return self.threshold("one", shape, -0.5, self.scale("nothing", shape, 0.0, source))

    def build(self, **metadata: Any) -> Any:
        """The `nir.NIRGraph`, with its shapes checked by nir."""
        return self.nir.NIRGraph(self.nodes, self.edges, metadata=metadata)


def _filled(shape: NodeShape, values: ArrayLike) -> NDArray[np.float64]:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(values, dtype=np.float64), shape))


def by_channel(values: NDArray[Any], shape: NodeShape) -> NDArray[np.float64]:
    """[C] or [*shape] → [*shape]."""
    values = np.asarray(values, dtype=np.float64)
    return _filled(shape, values if values.ndim == len(shape) else values.reshape(-1, *[1] * (len(shape) - 1)))
