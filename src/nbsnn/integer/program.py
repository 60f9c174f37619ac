"""The integer network as data: a short list of integer operations, which every backend reads and nobody changes: tensors are
copied when they come in, and a write to one is refused (`integer.frozen`).

All numbers are integers but the head's last multiplication, so that the result is the same on any device, batch size and
thread count. Values have names: `IMAGE`, and the name of each node. A unit's value is its spikes in one step (−1, 0, 1) or,
in the "counts" engine, its count in [0, levels]; both obey the same arithmetic. A pooled or flattened value is linear in its
source, and constant in time if the source is the image. A max pool's value is the change in this step of the maximum of its
source's net counts (−1, 0, 1), or the maximum of the counts.

In step t ≤ T a unit receives, in units of 2^−F of its spike's height,

    current_t = bias + Σ_constant branches ((multiplier · acc + 2^(shift−1)) >> shift) + Σ_other branches multiplier · acc_t

and in later steps (schedule "settle") only the last sum. `acc` is the branch's integer convolution of its source's
value, in the unit's shape. The membrane starts at 2^(F−1); a spike takes 2^F. The count of the quantized network is

    N = clip((2^(F−1) + T · (bias + constant) + Σ multiplier · acc(counts)) >> F, 0, levels).
"""

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from nbsnn.integer.nodes import IMAGE, Head, MaxPool, Node, Pixels, Resample, SumPool, Unit
from nbsnn.integer.readout import Readout

Made = TypeVar("Made")


def constant_values(nodes: Iterable[Node]) -> frozenset[str]:
    """Names of the values that do not change in time."""
    known = {IMAGE}
    for node in nodes:
        if not isinstance(node, Unit) and node.source in known:
            known.add(node.name)
    return frozenset(known)


def count_values(nodes: Iterable[Node], units: Iterable[str] = ()) -> frozenset[str]:
    """Names of the values that hold counts of single neurons: of units (also of others than the nodes), max pools, choices."""
    known = set(units)
    for node in nodes:
        if holds_counts(node, known):
            known.add(node.name)
    return frozenset(known)


def holds_counts(node: Node, known: Set[str]) -> bool:
    """Whether each place of a value is the count of one neuron, or 0; `known` names the earlier values of which that is so."""
    if isinstance(node, Unit):
        return True
    chooses = node.map.chooses if isinstance(node, Resample) else isinstance(node, SumPool) and node.kernel == (1, 1)
    return node.source in known and (chooses or isinstance(node, MaxPool))


def step_sizes(nodes: Iterable[Node], pixels: Pixels) -> dict[str, int]:
    """Value → its largest magnitude in one step; units that are not among the nodes count 1 as well."""
    sizes = {IMAGE: max(-pixels.low, pixels.high)}
    for node in nodes:
        sizes[node.name] = 1 if isinstance(node, (Unit, MaxPool)) else sizes.get(node.source, 1) * _gain(node)
    return sizes


def _gain(node: Node) -> int:
    """The largest sum that a node makes of ones of either sign."""
    if isinstance(node, Resample):
        return node.map.largest
    return node.kernel[0] * node.kernel[1] if isinstance(node, SumPool) else 1


class Cache:
    """Values by key, each made once; the copy of a cache is empty."""

    def __init__(self) -> None:
        self._lock, self._values = threading.RLock(), dict[Hashable, Any]()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of a key, made if need be."""
        if key not in self._values:
            with self._lock:
                if key not in self._values:
                    self._values[key] = make()
        return self._values[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return Cache, ()


@dataclass(frozen=True, eq=False)
class Program:
    """A whole integer network.

    Attributes:
        timesteps: T.
        pixels: the image's grid.
        nodes: in an order in which sources come first.
        head: the output, or the first one.
        more: other heads.
        readout: how the heads' numbers make the network's result; None: the result is the only head's.
        notes: what lowering rounded beyond the quantized network, one line each.
        origin: its source as plain values: recipe, model, metrics.
        cache: values that backends prepared once for all runs; see `prepared`. Not stored and not copied: `dataclasses.replace`
            gives a program with an empty cache.
    """

    timesteps: int
    pixels: Pixels
    nodes: tuple[Node, ...]
    head: Head
    notes: tuple[str, ...] = field(default=())
    origin: dict[str, Any] = field(default_factory=dict)
    more: tuple[Head, ...] = ()
    readout: Readout | None = None
    cache: Cache = field(default_factory=lambda: Cache(), init=False, repr=False)

    def prepared(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """The cached result of `make`, such as weights in the layout of a backend.

        Args:
            key: begins with the backend's name.
            make: called once, by one thread.
        """
        made: Made = self.cache.get(key, make)
        return made

    @property
    def heads(self) -> tuple[Head, ...]:
        """All heads, in order."""
        return (self.head, *self.more)

    def result(self, accumulators: Sequence[Tensor]) -> Any:
        """The network's result, of accumulators as in `Outcome`: logits [B, *head.shape] float32, or as in `readout`."""
        rest = list(accumulators)
        numbers = [head.numbers([rest.pop(0) for _ in head.branches]) for head in self.heads]
        return numbers[0].to(torch.float32) if self.readout is None else self.readout.of(numbers)

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """The nodes that fire, in order."""
        return tuple(node for node in self.nodes if isinstance(node, Unit))

    @cached_property
    def sending(self) -> tuple[Unit | MaxPool, ...]:
        """The nodes whose values are no linear function of another value: units and max pools, in order."""
        return tuple(node for node in self.nodes if isinstance(node, (Unit, MaxPool)))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every value, without the batch."""
        return {IMAGE: self.pixels.shape} | {node.name: node.shape for node in self.nodes}

    @cached_property
    def constants(self) -> frozenset[str]:
        """Values that do not change in time: the image and what is pooled or flattened of it."""
        return constant_values(self.nodes)

    @cached_property
    def counted(self) -> frozenset[str]:
        """Values that hold counts of single neurons."""
        return count_values(self.nodes)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The largest |value| in one step: of spikes 1, of a pixel its range, times the size of every window since."""
        return step_sizes(self.nodes, self.pixels)

    @cached_property
    def depths(self) -> dict[str, int]:
        """Units on the longest path from the image to each value, its own included."""
        depth = {IMAGE: 0}
        for node in self.nodes:
            depth[node.name] = max(depth[source] for source in node.sources) + isinstance(node, Unit)
        return depth

    @cached_property
    def depth(self) -> int:
        """Units on the longest path from the image to a head."""
        return max(self.depths[source] for head in self.heads for source in head.sources)

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """The nodes by the name of their value."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def last_use(self) -> dict[str, int]:
        """Index of the last node that reads a value; heads come after the nodes. After it the value can be forgotten."""
        readers = enumerate((*self.nodes, *self.heads))
        return {source: index for index, node in readers for source in node.sources}


class Rows(Mapping[str, Tensor]):
    """Rows of one tensor by name; each becomes a tensor of its own when it is read, which most runs never do."""

    def __init__(self, tensor: Tensor, index: Mapping[str, int]) -> None:
        self._tensor, self._index = tensor, index

    def __getitem__(self, name: str) -> Tensor:
        return self._tensor[self._index[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Result of a backend for a batch of B images.

    Attributes:
        accumulators: [B, *head.shape] int64 for each branch of each head, in order.
        steps: [B] int64, the steps of each image: T for `run_counts` and "fixed"; the last step with a spike, but at
            least T, under "settle"; (depth + 1)·T under "barrier".
        spikes: unit → [B] int64, spikes of either sign in all steps; for `run_counts` Σ counts, which is what "barrier" fires.
        counts: unit → [B, *shape] int32 net counts, if requested.
        fired: unit or max pool → [B, *shape] int32 spikes, or changes of the maximum, of either sign in all steps, if asked for
            (`keep_fired`); only the torch backend has them, for signed neurons: unsigned ones have fired their counts.
        result: `Program.result` of the accumulators, if the backend computed it.
    """

    accumulators: tuple[Tensor, ...]
    steps: Tensor
    spikes: Mapping[str, Tensor]
    counts: dict[str, Tensor] = field(default_factory=dict)
    fired: dict[str, Tensor] = field(default_factory=dict)
    result: Any = None
