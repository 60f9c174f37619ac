"""NeuroBench's harness on the spikes of an integer network, beside the exact count; see docs/neurobench.md."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.errors import ConfigError, MissingDependencyError
from nbsnn.inputs import as_images, as_labels
from nbsnn.integer.frozen import thawed
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.nodes import IMAGE, Branch, Head, MaxPool, Resample, Unit
from nbsnn.integer.pixels import to_integers
from nbsnn.integer.products import NamedTensors
from nbsnn.integer.program import Program
from nbsnn.shapes import plane

_AT_A_TIME = 4  # images: the harness keeps the input of every layer in every step, in double precision


@dataclass(frozen=True)
class NeuroBench:
    """What the harness measured, and the exact count. Operations are per image.

    Attributes:
        schedule, neuron: how the spikes were made.
        images: number of images.
        footprint: bytes of weights, multipliers and biases in their integer types (their `Footprint`).
        connection_sparsity: share of weights that are 0.
        activation_sparsity: share of neurons that are silent in a step, over all steps.
        top1: accuracy in percent, if there are labels.
        effective_macs, effective_acs, dense: their `SynapticOperations`.
        synops: ours, exact: every spike at every synapse, as `nbsnn.count_synops`.
        zero_weights: synapses of these whose weight is 0, which the harness leaves out.
        skips: additions of skips, for which it has no layer.
        pooled: additions behind sums of places, whose values are no spikes: it counts each value as a multiplication.
    """

    schedule: str
    neuron: str
    images: int
    footprint: int
    connection_sparsity: float
    activation_sparsity: float
    top1: float | None
    effective_macs: float
    effective_acs: float
    dense: float
    synops: float
    zero_weights: float
    skips: float
    pooled: float

    @property
    def explained(self) -> float:
        """effective_acs + zero_weights + skips + pooled, which is `synops`."""
        return self.effective_acs + self.zero_weights + self.skips + self.pooled

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@checked_arguments
def neurobench(
    network: IntegerNetwork,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    neuron: str | None = None,
    schedule: str = "settle",
    progress: Callable[[int], None] | None = None,
) -> NeuroBench:
    """Measure footprint, sparsity and synaptic operations with NeuroBench 2.3.

    The harness sees layers with the network's integer weights that read its spikes: −1, 0 and 1, as thresholds are folded. It
    computes in double precision, in which its sums are exact.

    Args:
        network: with one output for each image, [B, classes].
        images: as in `IntegerNetwork.simulate`.
        labels: [B] classes, for the accuracy.
        neuron, schedule: as in `nbsnn.to_spiking`.
        progress: called with the number of images of each batch.
    Raises:
        MissingDependencyError: neurobench is not installed.
        ConfigError: the network has several outputs or places.
    """
    try:
        from neurobench.benchmarks import Benchmark
        from neurobench.metrics.static import ConnectionSparsity, Footprint
        from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
        from neurobench.models import TorchModel
    except ImportError:
        raise MissingDependencyError("neurobench", extra="neurobench", purpose="the NeuroBench harness") from None
    program = network.program
    if program.readout is not None or len(program.head.shape) != 1:
        raise ConfigError("the network has several outputs or places; NeuroBench is for one output of [B, classes]")
    pixels = to_integers(program.pixels, as_images(images, ranks=(len(program.pixels.shape) + 1,), pixels=True))
    wanted = torch.zeros(len(images), dtype=torch.int64) if labels is None else as_labels(labels, count=len(images))
    stored = TorchModel(FoldedNetwork(network, stored=True))
    folded = FoldedNetwork(network, neuron=neuron, schedule=schedule)
    model = TorchModel(folded)
    model.add_activation_module(Spikes)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(pixels, wanted), batch_size=_AT_A_TIME)
    harness = Benchmark(model, batches, [], [], [[], [ActivationSparsity, SynapticOperations]])
    folded.on_batch = progress
    measured = harness.run(quiet=True)
    operations, count = measured["SynapticOperations"], len(images)
    hits = float((folded.logits().argmax(1) == wanted).double().mean())
    return NeuroBench(
        folded.pair[1], folded.pair[0], count, int(Footprint()(stored)), float(ConnectionSparsity()(stored)),
        float(measured["ActivationSparsity"]), None if labels is None else 100 * hits,
        float(operations["Effective_MACs"]), float(operations["Effective_ACs"]), float(operations["Dense"]),
        **{name: total / count for name, total in folded.counted.items()},
    )  # fmt: skip


class Spikes(nn.Module):
    """Spikes of a unit or changes of a max pool, [T·B, ...]: an activation that the harness observes."""

    def forward(self, spikes: Tensor) -> Tensor:
        return spikes


class FoldedNetwork(nn.Module):
    """The weight layers of an integer network as modules, which are called on its spikes with time folded into the batch.

    Attributes:
        counted: operations of all images by their kind, as in `NeuroBench`.
        pair: neuron and schedule.
    """

    on_batch: Callable[[int], None] | None = None

    def __init__(
        self, network: IntegerNetwork, *, neuron: str | None = None, schedule: str = "settle", stored: bool = False
    ) -> None:
        super().__init__()
        self.source, self.pair = network, (neuron or "", schedule)
        self.counted = dict.fromkeys(("synops", "zero_weights", "skips", "pooled"), 0.0)
        self.activations = nn.ModuleDict({_key(node.name): Spikes() for node in network.program.sending})
        self.layers = nn.ModuleDict()
        self._logits: list[Tensor] = []
        for at, node, branch in _branches(network.program):
            if branch.weight is not None:
                self.layers[at] = _layer(branch, network.program, stored=stored)
            if stored:
                self.register_buffer(f"gain_{at}", thawed(branch.multiplier))
                self.register_buffer(f"bias_{at.split('_')[0]}", thawed(node.bias))

    def logits(self) -> Tensor:
        """[B, classes] of all batches so far, from the layers' own sums."""
        return torch.cat(self._logits)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, classes] of pixels on the network's grid."""
        program = self.source.program
        images = pixels.double() / 2**program.pixels.fraction_bits
        recording = self.source.record(
            images, layers=[node.name for node in program.sending], neuron=self.pair[0] or None, schedule=self.pair[1]
        )
        self.pair = (recording.neuron, recording.schedule)
        spikes = {name: x.flatten(0, 1).double() for name, x in recording.spikes.items()}
        seen: NamedTensors = {IMAGE: images}
        for node in program.nodes:
            if node.name in spikes:
                seen[node.name] = self.activations[_key(node.name)](spikes[node.name])
            elif not isinstance(node, Unit):
                seen[node.name] = node.apply(seen[node.source])
        total = thawed(program.head.bias)
        for at, reader, branch in _branches(program):
            result = self._current(at, branch, seen[branch.source], reader)
            if isinstance(reader, Head):
                steps = result.view(-1, len(pixels), *reader.shape).sum(0)
                scale = 2.0**program.pixels.fraction_bits if branch.source in program.constants else 1.0
                total = total + steps * (thawed(branch.multiplier) * scale)
            if branch.source not in program.constants:
                self._count(branch, _magnitudes(program, spikes, branch.source), seen[branch.source], reader)
        self._logits.append(total.expand(len(pixels), -1))
        if self.on_batch:
            self.on_batch(len(pixels))
        return self._logits[-1]

    def _current(self, at: str, branch: Branch, x: Tensor, node: Unit | Head) -> Tensor:
        """acc of a branch, by its layer."""
        if branch.weight is None:
            return x.reshape(-1, *node.shape)
        acc: Tensor = self.layers[at](x if branch.weight.dim() == 2 else x.reshape(len(x), *plane(x.shape[1:])))
        return (acc if branch.after is None else branch.after.apply(acc)).reshape(-1, *node.shape)

    def _count(self, branch: Branch, sent: Tensor, seen: Tensor, node: Unit | Head) -> None:
        """Add the additions that the spikes behind a value cause, and how the harness counts them.

        Args:
            branch: of the node.
            sent: [T·B, ...], spikes of either sign that each place of the source sums.
            seen: [T·B, ...], the source as the harness sees it.
            node: a unit or a head.
        """
        if branch.weight is None:
            self.counted["skips"] += float(sent.sum())
            self.counted["synops"] += float(sent.sum())
            return
        every = _reached(branch, sent, torch.ones_like(branch.weight))
        self.counted["synops"] += every
        theirs = 0.0
        if bool((seen.abs() <= 1).all()):  # whole numbers, so −1, 0 or 1: additions in the harness
            plain = replace(branch, after=None)
            theirs = _reached(plain, (seen != 0).double(), (thawed(branch.weight) != 0).to(torch.int8))
            if branch.after is None and torch.equal(seen.abs(), sent):
                self.counted["zero_weights"] += every - theirs
                return
        self.counted["pooled"] += every - theirs


def _branches(program: Program) -> list[tuple[str, Unit | Head, Branch]]:
    """Branches of all units and of the head, with a name for each: "<node>_<branch>"."""
    nodes: tuple[Unit | Head, ...] = (*program.units, program.head)
    return [(f"{i}_{j}", node, branch) for i, node in enumerate(nodes) for j, branch in enumerate(node.branches)]


def _key(name: str) -> str:
    return name.replace(".", "_")  # of a module


def _layer(branch: Branch, program: Program, *, stored: bool) -> nn.Module:
    """A layer with the branch's weights: in their own type, or in float64 to compute with."""
    weight = thawed(branch.weight)
    layer: nn.Module
    with torch.device("meta"):
        if weight.dim() == 2:
            layer = nn.Linear(weight.shape[1], len(weight), bias=False)
        else:
            layer = nn.Conv2d(
                weight.shape[1] * branch.groups, len(weight), weight.shape[2:], branch.stride, branch.padding, branch.dilation,
                branch.groups, bias=False,
            )  # fmt: skip
    layer.weight = nn.Parameter(weight if stored else weight.double(), requires_grad=False)
    return layer


def _magnitudes(program: Program, spikes: NamedTensors, value: str) -> Tensor:
    """[T·B, *shape] float64: spikes of either sign that a place of a value sums, each counted once."""
    if value in spikes:
        return spikes[value].abs()
    node = program.by_name[value]
    assert not isinstance(node, (Unit, MaxPool))
    reached = replace(node, map=node.map.reach()) if isinstance(node, Resample) else node
    return reached.apply(_magnitudes(program, spikes, node.source))


def _reached(branch: Branch, sent: Tensor, weight: Tensor) -> float:
    """Additions that so many spikes cause at each place, at synapses whose `weight` is 1."""
    if weight.dim() == 2:
        return float((sent @ weight.double().T).sum())
    planes = sent.reshape(len(sent), *plane(sent.shape[1:]))
    acc = nn.functional.conv2d(planes, weight.double(), None, branch.stride, branch.padding, branch.dilation, branch.groups)
    return float((acc if branch.after is None else branch.after.reach().apply(acc)).sum())
