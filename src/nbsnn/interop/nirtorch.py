"""Run NIR graphs in nirtorch's executor, with modules for the nodes that its own table lacks or maps wrongly.

One step of the executor is one time step of length 1. An edge that closes a cycle carries the output of the step before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbsnn.errors import ConfigError, MissingDependencyError, unknown
from nbsnn.hooks import hooked
from nbsnn.interop.nirfile import axis_numbers, nir_package, read_nir


class _Integrator(nn.Module):
    """nir.I: the sum of its inputs so far, times r."""

    r: Tensor

    def __init__(self, node: Any) -> None:
        super().__init__()
        self.register_buffer("r", _tensor(node.r))

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = self.r * x if state is None else state + self.r * x
        return total, total


class _Threshold(nn.Module):
    """nir.Threshold: 1 above the threshold, otherwise 0."""

    threshold: Tensor

    def __init__(self, node: Any) -> None:
        super().__init__()
        self.register_buffer("threshold", _tensor(node.threshold))

    def forward(self, x: Tensor) -> Tensor:
        return (x > self.threshold).to(x.dtype)


class _Scale(nn.Module):
    """nir.Scale: element by element."""

    scale: Tensor

    def __init__(self, node: Any) -> None:
        super().__init__()
        self.register_buffer("scale", _tensor(node.scale))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class _IntegrateAndFire(nn.Module):
    """nir.IF, as NIR defines it: fires above its threshold, and is then set to v_reset."""

    r: Tensor
    v_threshold: Tensor
    v_reset: Tensor

    def __init__(self, node: Any) -> None:
        super().__init__()
        for name in ("r", "v_threshold", "v_reset"):
            self.register_buffer(name, _tensor(getattr(node, name)))

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        v = self.r * x if state is None else state + self.r * x
        fires = v > self.v_threshold
        return fires.to(x.dtype), torch.where(fires, self.v_reset, v)


class _Layer(nn.Module):
    """A function of its input and of one weight and bias."""

    def __init__(self, function: Callable[..., Tensor], weight: Any, bias: Any = None, **options: Any) -> None:
        super().__init__()
        self.function, self.options = function, options
        self.register_buffer("weight", _tensor(weight))
        self.register_buffer("bias", None if bias is None else _tensor(bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias, **self.options)


class _SumPool(nn.Module):
    """nir.SumPool2d: sums over windows, zeros outside."""

    def __init__(self, node: Any) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = (_pair(v) for v in (node.kernel_size, node.stride, node.padding))

    def forward(self, x: Tensor) -> Tensor:
        (top, left) = self.padding
        return F.avg_pool2d(F.pad(x, (left, left, top, top)), self.kernel, self.stride, divisor_override=1)


def _convolution(function: Callable[..., Tensor], axes: int) -> Callable[[Any], nn.Module]:
    def make(node: Any) -> nn.Module:
        sizes = {name: axis_numbers(getattr(node, name), axes) for name in ("stride", "padding", "dilation")}
        return _Layer(function, node.weight, node.bias, groups=int(node.groups), **sizes)

    return make


def nirtorch_map() -> dict[type, Callable[[Any], nn.Module]]:
    """Node type → maker of a module, for `nirtorch.nir_to_torch`: all nodes of files that `nbsnn.export_nir` writes.

    nirtorch's own table has no I, Threshold, Scale and IF, and forgets the bias of an Affine, the padding of a SumPool2d and
    that a Flatten's dimensions do not count the batch.

    Raises:
        MissingDependencyError: nir is not installed.
    """
    nir = nir_package()
    return {
        nir.I: _Integrator,
        nir.Threshold: _Threshold,
        nir.Scale: _Scale,
        nir.IF: _IntegrateAndFire,
        nir.Linear: lambda node: _Layer(F.linear, node.weight),
        nir.Affine: lambda node: _Layer(F.linear, node.weight, node.bias),
        nir.Conv1d: _convolution(F.conv1d, 1),
        nir.Conv2d: _convolution(F.conv2d, 2),
        nir.SumPool2d: _SumPool,
        nir.Flatten: lambda node: nn.Flatten(*(int(d) + (d >= 0) for d in (node.start_dim, node.end_dim))),
    }


@dataclass(frozen=True, eq=False)
class NirRun:
    """Result of `run_nir` on B images.

    Attributes:
        output: [steps, B, ...], what the graph returned in each step.
        values: node → [steps, B, ...], what each watched node returned.
    """

    output: Tensor
    values: dict[str, Tensor]


def run_nir(graph: Any, images: Tensor, *, timesteps: int, steps: int | None = None, watch: tuple[str, ...] = ()) -> NirRun:
    """Run a NIR graph in nirtorch, in double precision.

    Args:
        graph: a `nir.NIRGraph`, or the path of a file.
        images: [B, ...] shown in the first T steps; zeros follow.
        timesteps: T.
        steps: how many to take; T unless given.
        watch: nodes whose outputs are wanted, by their names in the graph or by the names of our layers in its metadata.
    Raises:
        MissingDependencyError: nir or nirtorch is not installed.
        ConfigError: the graph has no node of a name.
        CheckpointError: the file is missing, damaged, too large or not a NIR file.
    """
    try:
        from nirtorch.nir_interpreter import nir_to_torch
    except ImportError:
        raise MissingDependencyError("nirtorch", extra="nir", purpose="Running NIR graphs") from None
    graph = read_nir(Path(graph)) if isinstance(graph, (str, Path)) else graph
    layers = {node.metadata["layer"]: key for key, node in graph.nodes.items() if "layer" in node.metadata}
    named = {name: layers.get(name, name) for name in watch}
    if strangers := [name for name in watch if named[name] not in graph.nodes]:
        raise ConfigError(unknown("node", strangers[0], (*layers, *graph.nodes)))
    module = nir_to_torch(graph, nirtorch_map(), dtype=torch.float64)
    seen: dict[str, list[Tensor]] = {name: [] for name in watch}
    outputs, state = [], None
    images = images.to(torch.float64)
    silence = torch.zeros_like(images)

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, result: seen[name].append(result[0] if isinstance(result, tuple) else result)

    with torch.no_grad(), hooked(getattr(module, named[name]).register_forward_hook(keep(name)) for name in watch):
        for step in range(timesteps if steps is None else steps):
            output, state = module(images if step < timesteps else silence, state)
            outputs.append(output)
    return NirRun(torch.stack(outputs), {name: torch.stack(values) for name, values in seen.items()})


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(values).clone()


def _pair(value: Any) -> tuple[int, int]:
    pair: tuple[int, int] = axis_numbers(value, 2)
    return pair
