"""Import networks of integrate-and-fire neurons from NIR files, where ours are the same neurons; refuse all else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.errors import CheckpointError, ConfigError, ConversionError, shown
from nbsnn.interop.nirfile import axis_numbers, read_nir
from nbsnn.models.steps import INPUT, GraphStep, StepNetwork, step_name, step_network
from nbsnn.quant.layers import QuantReLU
from nbsnn.quant.plans import ActFormat, Plan, apply_plan_
from nbsnn.spiking.convert import to_spiking
from nbsnn.spiking.network import SpikingNetwork

_BITS = {2**bits - 1: bits for bits in range(1, 9)}
_OTHERS = {
    "LIF": "leaks", "CubaLIF": "leaks", "CubaLI": "leaks and never fires", "LI": "leaks and never fires",
    "Delay": "delays spikes", "NIRGraph": "is a graph inside the graph",
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
            IF nodes without cycles. Layers keep the names of its nodes; a checkpoint of the network describes it completely.
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
    _check_neurons(path, graph, reset, charge)
    bits = _BITS[_timesteps(path, graph.metadata, timesteps)]
    parts = _read(path, graph)
    network = _network(path, parts)
    plan: Plan = {step.name: ActFormat(bits) for step in parts.steps if step.kind == "relu"}
    quantized = apply_plan_(network, plan).double().eval()
    with torch.no_grad():
        for name, numbers in parts.state.items():
            module = quantized.get_submodule(name)
            for key, values in numbers.items():
                getattr(module, key).copy_(values)
        for module in quantized.modules():
            if isinstance(module, QuantReLU):
                nn.init.ones_(module.threshold)  # currents are in units of it
    example = torch.zeros(1, *parts.image_shape, dtype=torch.float64)
    return to_spiking(quantized, example, neuron="unsigned", schedule="fixed")


@dataclass
class _Parts:
    """The steps of a graph so far: a ReLU for each IF node, in units of its threshold.

    Attributes:
        steps: in order; those of a node have its name.
        state: module → its tensors.
        results: node → the step that makes its value.
    """

    image_shape: tuple[int, ...]
    steps: list[GraphStep] = field(default_factory=list)
    state: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, name: str, *inputs: str, **options: Any) -> str:
        """Append a step, and return its name."""
        found = step_name(name, {step.name for step in self.steps})
        self.steps.append(GraphStep(kind, found, inputs, options))
        return found


def _network(path: Path, parts: _Parts) -> StepNetwork:
    try:
        return step_network([step.plain() for step in parts.steps], [parts.results[""]])
    except ConfigError as error:
        raise ConversionError(f"{path}: {error}; export it again") from None


def _read(path: Path, graph: Any) -> _Parts:
    """Follow the nodes of a graph, sources first."""
    kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
    ends = {kind: [name for name in kinds if kinds[name] == kind] for kind in ("Input", "Output")}
    for kind, names in ends.items():
        if len(names) != 1:
            raise ConversionError(f"{path}: the graph has {len(names)} {kind} nodes; export a network with one of each")
    [start], [end] = ends.values()
    parts = _Parts(tuple(int(n) for n in graph.nodes[start].input_type["input"]), results={start: INPUT})
    for name, sources in _in_order(path, graph, start).items():
        total = parts.results[sources[0]]
        for source in sources[1:]:
            total = parts.add("add", f"{name}_sum", total, parts.results[source])
        parts.results[name] = total if name == end else _add(path, name, graph.nodes[name], parts, total)
    parts.results[""] = parts.results[end]
    return parts


def _check_neurons(path: Path, graph: Any, reset: str | None, charge: float | None) -> None:
    """Raise an error unless the neurons are said to be like ours, by the caller or by a file of ours."""
    if any(type(node).__name__ in ("I", "Threshold") for node in graph.nodes.values()):
        raise ConversionError(
            f"{path}: its neurons are made of integrators and thresholds, as profile='exact' writes them, which is not read; "
            "keep the network's checkpoint, or write it with profile='if-charged'"
        )
    metadata = graph.metadata
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


def _add(path: Path, name: str, node: Any, parts: _Parts, source: str) -> str:
    """Append the steps of a node other than input and output.

    Raises:
        ConversionError: it is none that our networks have.
    """
    kind = type(node).__name__
    if kind in ("Conv1d", "Conv2d"):
        return _convolution(path, name, node, parts, source, 1 if kind == "Conv1d" else 2)
    if kind in ("Linear", "Affine") and node.weight.ndim == 2:
        outputs, inputs = node.weight.shape
        made = parts.add("linear", name, source, in_features=inputs, out_features=outputs, bias=kind == "Affine")
        return _filled(parts, made, node)
    if kind == "Scale":
        return _scaled(parts, name, torch.as_tensor(node.scale), source)
    if kind in ("SumPool2d", "AvgPool2d"):
        sizes = {key: axis_numbers(getattr(node, key), 2) for key in ("kernel_size", "stride", "padding")}
        return parts.add("average pool 2d", name, source, **sizes, **({"divisor_override": 1} if kind == "SumPool2d" else {}))
    if kind == "Flatten":
        first, last = (int(d) + (int(d) >= 0) for d in (node.start_dim, node.end_dim))
        return parts.add("flatten", name, source, start=first, end=last)
    if kind == "IF":
        gain = torch.as_tensor(node.r, dtype=torch.float64) / torch.as_tensor(node.v_threshold, dtype=torch.float64)
        if not bool((gain.isfinite() & (gain > 0)).all()):
            raise ConversionError(f"{path}: {name} has thresholds or r that are not positive; give a network of IF neurons")
        return parts.add("relu", name, source if bool((gain == 1).all()) else _scaled(parts, f"{name}_gain", gain, source))
    reason = _OTHERS.get(kind, "has axes that our layers do not have")
    raise ConversionError(f"{path}: {name} is of type {kind}, which {reason}; give a network of IF neurons")


def _scaled(parts: _Parts, name: str, factor: Tensor, source: str) -> str:
    """A value times constants of its shape."""
    made = parts.add("per element", name, source, shape=tuple(factor.shape))
    parts.state[made] = {"gain": factor.double()}
    return made


def _convolution(path: Path, name: str, node: Any, parts: _Parts, source: str, axes: int) -> str:
    outputs, inputs, *kernel = node.weight.shape
    sizes = {key: axis_numbers(getattr(node, key), axes) for key in ("stride", "padding", "dilation")}
    if isinstance(sizes["padding"], str):
        same = sizes["padding"] == "same"
        room = [d * (k - 1) if same else 0 for d, k in zip(sizes["dilation"], kernel, strict=True)]
        border = [n for total in reversed(room) for n in (total // 2, total - total // 2)]
        source = parts.add("pad", f"{name}_pad", source, pad=border) if any(border) else source
        sizes["padding"] = (0,) * axes
    made = parts.add(
        f"conv{axes}d", name, source, in_channels=inputs * int(node.groups), out_channels=outputs, kernel_size=tuple(kernel),
        groups=int(node.groups), bias=True, **sizes,
    )  # fmt: skip
    return _filled(parts, made, node)


def _filled(parts: _Parts, name: str, node: Any) -> str:
    """Keep a layer's numbers, and return its name."""
    keys = [key for key in ("weight", "bias") if hasattr(node, key)]
    parts.state[name] = {key: torch.as_tensor(getattr(node, key), dtype=torch.float64) for key in keys}
    return name
