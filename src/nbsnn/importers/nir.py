"""Import networks of integrate-and-fire neurons from NIR files, where ours are the same neurons; refuse all else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.errors import CheckpointError, ConversionError, shown
from nbsnn.interop.nirfile import axis_numbers, read_nir
from nbsnn.quant.layers import QuantReLU
from nbsnn.quant.quantize import quantize
from nbsnn.recipe import QuantSpec
from nbsnn.spiking.convert import to_spiking
from nbsnn.spiking.network import SpikingNetwork

_BITS = {2**bits - 1: bits for bits in range(1, 9)}
_OTHERS = {
    "LIF": "leaks", "CubaLIF": "leaks", "CubaLI": "leaks and never fires", "LI": "leaks and never fires", "I": "never fires",
    "Threshold": "forgets its current after each step", "Delay": "delays spikes", "NIRGraph": "is a graph inside the graph",
}  # fmt: skip


@checked_arguments
def load_nir(
    path: str | Path, *, timesteps: int | None = None, reset: str | None = None, charge: float | None = None
) -> SpikingNetwork:
    """A NIR file of IF neurons as a spiking network with unsigned neurons and the schedule "fixed", in double precision.

    NIR's neurons are set to v_reset after a spike and begin at 0; ours subtract the threshold and begin with half of it. So a
    file is imported only if it is said to be meant for neurons like ours, as files of the profile "if-charged" say themselves.
    NIR fires above the threshold, ours at it: they differ where a membrane meets it exactly.

    Args:
        path: a file with one input and one output, of Conv1d, Conv2d, Linear, Affine, Scale, SumPool2d, AvgPool2d, Flatten and
            IF nodes without cycles. Layers keep the names of its nodes.
        timesteps: T = 2^b − 1, in which the image is shown as a constant current.
        reset: "subtract".
        charge: 0.5, of a threshold before the first step.
    Raises:
        CheckpointError: the file is missing, damaged, too large or not a NIR file.
        ConversionError: a node, a reset or a charge that our neurons do not have.
        MissingDependencyError: nir is not installed.
    """
    path = Path(path)
    graph = read_nir(path)
    _check_neurons(path, graph.metadata, reset, charge)
    steps = _timesteps(path, graph.metadata, timesteps)
    network = NirNetwork(path, graph).double().eval()
    quantized = quantize(network, QuantSpec(32, _BITS[steps], edge_bits=32), prepare=False).double().eval()
    for module in quantized.modules():
        if isinstance(module, QuantReLU):
            nn.init.ones_(module.threshold)  # currents are in units of it
    example = torch.zeros(1, *network.image_shape, dtype=torch.float64)
    return to_spiking(quantized, example, neuron="unsigned", schedule="fixed")


class NirNetwork(nn.Module):
    """The float form of an imported graph: a ReLU for each IF node, in units of its threshold.

    Attributes:
        layers: by the names of their nodes.
        order: name of each node but the input, sources first, with its sources.
        image_shape: of the input.
    """

    def __init__(self, path: Path, graph: Any) -> None:
        super().__init__()
        kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
        ends = {kind: [name for name in kinds if kinds[name] == kind] for kind in ("Input", "Output")}
        for kind, names in ends.items():
            if len(names) != 1:
                raise ConversionError(f"{path}: the graph has {len(names)} {kind} nodes; export a network with one of each")
        self.input, self.output = ends["Input"][0], ends["Output"][0]
        self.image_shape = tuple(int(n) for n in graph.nodes[self.input].input_type["input"])
        self.order = _in_order(path, graph, self.input)
        self.layers = nn.ModuleDict(
            {name: _module(path, name, graph.nodes[name]) for name in self.order if name != self.output}
        )

    def forward(self, x: Tensor) -> Tensor:
        values = {self.input: x}
        for name, sources in self.order.items():
            total = values[sources[0]]
            for source in sources[1:]:
                total = total + values[source]
            values[name] = total if name == self.output else self.layers[name](total)
        return values[self.output]


class _Scaled(nn.Module):
    """Values times constants of their shape."""

    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def _check_neurons(path: Path, metadata: Mapping[str, Any], reset: str | None, charge: float | None) -> None:
    """Raise an error unless the neurons are said to be like ours, by the caller or by a file of ours."""
    profile = metadata.get("profile")
    if profile == "if":
        raise ConversionError(f"{path}: its bias holds the initial half threshold; write it with profile='if-charged'")
    own = profile == "if-charged"
    if (reset or ("subtract" if own else None), charge if charge is not None else 0.5 if own else None) != ("subtract", 0.5):
        raise ConversionError(
            f"{path}: NIR's neurons are set to v_reset and begin at 0, ours subtract the threshold and begin with half of it; "
            "if the network was made for such neurons, give reset='subtract' and charge=0.5"
        )


def _timesteps(path: Path, metadata: Mapping[str, Any], timesteps: int | None) -> int:
    steps = metadata.get("timesteps") if timesteps is None else timesteps
    if steps is None or int(steps) not in _BITS:
        known = ", ".join(map(str, _BITS))
        raise ConversionError(f"{path}: timesteps={shown(steps)}: give the number of steps T = 2^b - 1, one of {known}")
    return int(steps)


def _in_order(path: Path, graph: Any, start: str) -> dict[str, tuple[str, ...]]:
    """Nodes with their sources, sources first."""
    sources: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        if source not in sources or target not in sources:
            raise CheckpointError(f"{path}: damaged: an edge leads from {shown(source)} to {shown(target)}; export it again")
        sources[target].append(source)
    order: dict[str, tuple[str, ...]] = {}
    waiting = [name for name in graph.nodes if name != start]
    while waiting:
        ready = [name for name in waiting if sources[name] and not set(sources[name]) & set(waiting)]
        if not ready:
            raise ConversionError(f"{path}: {waiting[0]} is in a cycle or has no source; give a network without feedback")
        order |= {name: tuple(sources[name]) for name in ready}
        waiting = [name for name in waiting if name not in order]
    return order


def _module(path: Path, name: str, node: Any) -> nn.Module:
    """The module of a node other than input and output.

    Raises:
        ConversionError: it is none that our networks have.
    """
    kind = type(node).__name__
    if kind in ("Conv1d", "Conv2d"):
        return _convolution(node, 1 if kind == "Conv1d" else 2)
    if kind in ("Linear", "Affine") and node.weight.ndim == 2:
        outputs, inputs = node.weight.shape
        return _filled(nn.Linear(inputs, outputs, bias=kind == "Affine"), node)
    if kind == "Scale":
        return _Scaled(torch.as_tensor(node.scale))
    if kind in ("SumPool2d", "AvgPool2d"):
        size, stride, padding = (axis_numbers(value, 2) for value in (node.kernel_size, node.stride, node.padding))
        return nn.AvgPool2d(size, stride, padding, divisor_override=1 if kind == "SumPool2d" else None)
    if kind == "Flatten":
        return nn.Flatten(*(int(d) + (d >= 0) for d in (node.start_dim, node.end_dim)))
    if kind == "IF":
        return _neurons(path, name, node)
    reason = _OTHERS.get(kind, "has axes that our layers do not have")
    raise ConversionError(f"{path}: {name} is of type {kind}, which {reason}; give a network of IF neurons")


def _neurons(path: Path, name: str, node: Any) -> nn.Module:
    gain = torch.as_tensor(node.r, dtype=torch.float64) / torch.as_tensor(node.v_threshold, dtype=torch.float64)
    if not bool((gain.isfinite() & (gain > 0)).all()):
        raise ConversionError(f"{path}: {name} has thresholds or r that are not positive; give a network of IF neurons")
    return nn.ReLU() if bool((gain == 1).all()) else nn.Sequential(_Scaled(gain), nn.ReLU())


def _convolution(node: Any, axes: int) -> nn.Module:
    outputs, inputs, *sides = node.weight.shape
    groups = int(node.groups)
    sizes = {key: axis_numbers(getattr(node, key), axes) for key in ("stride", "padding", "dilation")}
    make = nn.Conv1d if axes == 1 else nn.Conv2d
    return _filled(make(inputs * groups, outputs, tuple(sides), groups=groups, **sizes), node)


def _filled(layer: Any, node: Any) -> nn.Module:
    layer.weight = nn.Parameter(torch.as_tensor(node.weight, dtype=torch.float64))
    if layer.bias is not None:
        layer.bias = nn.Parameter(torch.as_tensor(node.bias, dtype=torch.float64))
    module: nn.Module = layer
    return module
