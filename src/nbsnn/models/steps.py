"""Networks that are described completely by plain values: a list of steps, as an importer reads them from a file.

So a checkpoint of such a network can be loaded without any code of the user's: `ModelSpec.args` holds the steps, and each of
them is one of the few kinds below.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbsnn.errors import ConfigError, shown, unknown
from nbsnn.pooling import MinPool1d, MinPool2d
from nbsnn.prepare.modules import SignedActivation
from nbsnn.recipe import ModelSpec

INPUT = "images"  # the value that the network is called with
_MOST_STEPS, _MOST = 2**14, 2**31 - 1


class PerChannel(nn.Module):
    """gain · x + shift, [C] each or a scalar."""

    gain: Tensor
    shift: Tensor

    def __init__(self, channels: int, trailing: int) -> None:
        super().__init__()
        shape = (channels, *(1 for _ in range(trailing)))
        self.register_buffer("gain", torch.ones(shape))
        self.register_buffer("shift", torch.zeros(shape))

    def forward(self, input: Tensor) -> Tensor:
        return input * self.gain + self.shift


class PerElement(nn.Module):
    """gain · x, with a gain for each element of an image's value."""

    gain: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("gain", torch.ones(*shape))

    def forward(self, input: Tensor) -> Tensor:
        return input * self.gain


def _mean(x: Tensor, *, keep: bool, axes: Sequence[int] = ()) -> Tensor:
    return x.mean(tuple(axes or range(2, x.dim())), keepdim=keep)


def _pad(mode: str) -> Callable[..., Tensor]:
    return lambda x, *, pad, value=0.0: F.pad(x, tuple(pad), mode, value if mode == "constant" else None)


def _slice(x: Tensor, *, axis: int, start: int, stop: int, step: int = 1) -> Tensor:
    return x[(slice(None),) * axis + (slice(start, stop, step),)]


def _resize(mode: str, *, corners: bool | None = None) -> Callable[..., Tensor]:
    """Interpolation to places, or by factors, of the last axes."""

    def resize(x: Tensor, *, size: Sequence[int] = (), factors: Sequence[float] = ()) -> Tensor:
        named = "bilinear" if mode == "linear" and x.dim() == 4 else mode
        by: dict[str, Any] = {"size": tuple(size)} if size else {"scale_factor": tuple(factors)}
        return F.interpolate(x, **by, mode=named, align_corners=corners)

    return resize


# Modules by the kind of step, called with the options.
_MODULES: dict[str, Callable[..., nn.Module]] = {
    "conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "transposed conv1d": nn.ConvTranspose1d, "transposed conv2d": nn.ConvTranspose2d,
    "linear": nn.Linear, "norm1d": nn.BatchNorm1d, "norm2d": nn.BatchNorm2d, "relu": nn.ReLU,
    "pair": lambda slope=1.0: SignedActivation(nn.ReLU(), nn.ReLU(), slope), "per channel": PerChannel,
    "per element": PerElement,
    "max pool 1d": nn.MaxPool1d, "max pool 2d": nn.MaxPool2d, "global max pool": nn.AdaptiveMaxPool2d,
    "min pool 1d": MinPool1d, "min pool 2d": MinPool2d,
    "average pool 1d": nn.AvgPool1d, "average pool 2d": nn.AvgPool2d,
}  # fmt: skip
MODULE_KINDS = frozenset(_MODULES)
# Functions by the kind of step, of the inputs and the options. Of these, some only move and copy values, and zeros.
_MOVES: dict[str, Callable[..., Tensor]] = {
    "flatten": lambda x, start=1, end=-1: x.flatten(start, end),
    "reshape": lambda x, *, shape: x.reshape(-1, *shape),
    "permute": lambda x, *, axes: x.permute(tuple(axes)),
    "slice": _slice,
    "flip": lambda x, *, axis: x.flip(axis),
    "pad": _pad("constant"),
    "pad by reflection": _pad("reflect"),
    "pad with the edge": _pad("replicate"),
    "pad around": _pad("circular"),
    "shuffle to places": lambda x, *, factor: F.pixel_shuffle(x, factor),
    "shuffle to channels": lambda x, *, factor: F.pixel_unshuffle(x, factor),
    "resize nearest": _resize("nearest"),
    "resize nearest exact": _resize("nearest-exact"),
}
MOVING_KINDS = frozenset(_MOVES)
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: x - y,
    "concatenate": lambda *xs, axis=1: torch.cat(xs, axis),
    "mean": _mean,
    "pad with a value": _pad("constant"),
    "resize linear": _resize("linear", corners=False),
    "resize linear to corners": _resize("linear", corners=True),
    "resize cubic": _resize("bicubic", corners=False),
    "resize cubic to corners": _resize("bicubic", corners=True),
    **_MOVES,
}


@dataclass(frozen=True)
class GraphStep:
    """One operation.

    Attributes:
        kind: a key of the tables above.
        name: of its result, and of its module.
        inputs: names of earlier results, or `INPUT`.
        options: arguments of the module or the function, plain values.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> list[Any]:
        """As JSON values."""
        options = {key: list(value) if isinstance(value, tuple) else value for key, value in self.options.items()}
        return [self.kind, self.name, list(self.inputs), options]


class StepNetwork(nn.Module):
    """A network of steps, with a module for each that has parameters or is an activation."""

    def __init__(self, steps: Sequence[GraphStep], outputs: Sequence[str]) -> None:
        super().__init__()
        self.steps, self.outputs = tuple(steps), tuple(outputs)
        known = {INPUT}
        for step in self.steps:
            if step.kind not in _MODULES and step.kind not in FUNCTIONS:
                raise ConfigError(unknown("kind of step", step.kind, (*_MODULES, *FUNCTIONS)))
            if step.name in known or not step.inputs or not known.issuperset(step.inputs):
                raise ConfigError(f"step {shown(step.name)} reads what is not there, or has a name that is taken")
            known.add(step.name)
            if step.kind in _MODULES:
                self.add_module(step.name, make_module(step))
        if not self.outputs or not known.issuperset(self.outputs):
            raise ConfigError("an output of the steps is not there")

    def forward(self, images: Tensor) -> Any:
        values = {INPUT: images}
        for step in self.steps:
            values[step.name] = run_step(self, step, values)
        results = tuple(values[name] for name in self.outputs)
        return results[0] if len(results) == 1 else results


def step_name(label: str, taken: Collection[str]) -> str:
    """A new name for a step, near that of a layer or node elsewhere."""
    name = re.sub(r"\W+", "_", label, flags=re.ASCII).strip("_") or "step"
    name = name if name[0].isalpha() else f"step_{name}"
    used = {INPUT, "steps", "outputs", "training", "model_spec", *taken}
    chosen, number = name, 2
    while chosen in used or hasattr(StepNetwork, chosen):
        chosen, number = f"{name}_{number}", number + 1
    return chosen


def make_module(step: GraphStep) -> nn.Module:
    """The module of a step with default parameters.

    Raises:
        ConfigError: options that it does not take.
    """
    try:
        return _MODULES[step.kind](**{key: tuple(v) if isinstance(v, list) else v for key, v in step.options.items()})
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"step {shown(step.name)} ({step.kind}): {shown(str(error).splitlines()[0])}") from None


def run_step(network: nn.Module, step: GraphStep, values: Mapping[str, Tensor]) -> Tensor:
    """The result of a step."""
    inputs = [values[name] for name in step.inputs]
    if step.kind in _MODULES:
        made: Tensor = network.get_submodule(step.name)(*inputs)
        return made
    return FUNCTIONS[step.kind](*inputs, **step.options)


def step_network(steps: Sequence[Any], outputs: Sequence[Any]) -> StepNetwork:
    """The float network of steps as `GraphStep.plain` writes them.

    Raises:
        ConfigError: they are not such steps, or too many.
    """
    plain = isinstance(steps, (list, tuple)) and isinstance(outputs, (list, tuple)) and len(steps) <= _MOST_STEPS
    if not plain or not all(_is_step(step) for step in steps) or not all(isinstance(name, str) for name in outputs):
        raise ConfigError("the steps of a network must be [kind, name, inputs, options] each; import the network again")
    read = [GraphStep(kind, name, tuple(inputs), options) for kind, name, inputs, options in steps]
    network = StepNetwork(read, outputs)
    described = {"steps": [step.plain() for step in read], "outputs": list(outputs)}
    network.model_spec = ModelSpec(ModelSpec.STEPS, args=described)  # type: ignore[assignment]
    return network


def _is_step(step: Any) -> bool:
    if not isinstance(step, (list, tuple)) or len(step) != 4:
        return False
    kind, name, inputs, options = step
    named = isinstance(kind, str) and isinstance(name, str) and name.isidentifier() and isinstance(inputs, (list, tuple))
    return (
        named
        and all(isinstance(i, str) for i in inputs)
        and isinstance(options, dict)
        and all(map(_is_small, options.values()))
    )


def _is_small(value: Any) -> bool:
    """Whether an option is a flag, or numbers of moderate size: a file may hold any."""
    if isinstance(value, (list, tuple)):
        return len(value) <= 8 and all(type(item) in (int, float) and abs(item) <= _MOST for item in value)
    return (isinstance(value, (bool, int)) and abs(value) <= _MOST) or (isinstance(value, float) and math.isfinite(value))
