"""What a network did in time: spikes and membranes of chosen layers and positions, step by step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from nbsnn.errors import ConfigError, unknown

Positions = Sequence[tuple[int, ...]] | Mapping[str, Sequence[tuple[int, ...]]]


@dataclass(frozen=True)
class Intervals:
    """Steps between consecutive spikes, of either sign, of the same neuron: how many, their mean, deviation and extremes.

    `variation` is the coefficient of variation, deviation / mean: 0 for regular spikes. Without intervals, all are NaN.
    """

    number: int
    mean: float
    deviation: float
    shortest: float
    longest: float

    @property
    def variation(self) -> float:
        return self.deviation / self.mean


@dataclass(frozen=True, eq=False)
class Recording:
    """Result of `record`: B images over time. Steps count from the first one of the image; tensors are on the CPU.

    Where `positions` were given, the P chosen neurons of a layer stand for its shape [...].

    Attributes:
        spikes: layer → [steps, B, ...] int8: −1, 0 or 1. A max pool of an integer network has the changes of its maximum.
        membranes: layer → [steps, B, ...] at the end of each step, after its spike. In units of the activation, or of
            2^−F of a spike for integer networks. An image that has settled keeps its membranes.
        thresholds: layer → a neuron fires when its membrane reaches this, which a spike subtracts; in the membrane's unit.
        heights: layer → what a spike stands for, in units of the activation.
        steps: [B] int64, the steps that each image took.
        timesteps: T, the steps in which the image is shown.
        neuron, schedule: how it ran. Under "barrier" a layer of depth d integrates in the d-th window of T steps and sends its
            count in the next; spikes that skip layers are delayed accordingly.
        shapes: layer → its shape, without steps and images.
        positions: layer → the chosen positions, each an index into its shape; None for all.
    """

    spikes: dict[str, Tensor]
    membranes: dict[str, Tensor]
    thresholds: dict[str, float]
    heights: dict[str, float]
    steps: Tensor
    timesteps: int
    neuron: str
    schedule: str
    shapes: dict[str, tuple[int, ...]]
    positions: dict[str, tuple[tuple[int, ...], ...] | None]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the recorded layers, in order."""
        return tuple(self.spikes)

    def counts(self) -> dict[str, Tensor]:
        """Layer → [B, ...] int64 net spikes: positive minus negative ones."""
        return {name: spikes.sum(0, dtype=torch.int64) for name, spikes in self.spikes.items()}

    def fired(self) -> dict[str, Tensor]:
        """Layer → [B, ...] int64 spikes of either sign."""
        return {name: spikes.abs().sum(0, dtype=torch.int64) for name, spikes in self.spikes.items()}

    def rates(self) -> dict[str, Tensor]:
        """Layer → [B, ...] float64 counts · height / T: the value of the activation that the spikes stand for."""
        return {name: count.double() * (self.heights[name] / self.timesteps) for name, count in self.counts().items()}

    def activity(self) -> dict[str, Tensor]:
        """Layer → [steps] float64: the share of its neurons that fire in a step, over all images."""
        return {name: spikes.abs().flatten(1).double().mean(1) for name, spikes in self.spikes.items()}

    def potentials(self, layer: str) -> Tensor:
        """[steps, B, ...]: the membrane before the spike of each step, which the neuron compares with its threshold."""
        membranes = self._of(layer, self.membranes)
        return membranes + self.spikes[layer].to(membranes.dtype) * _whole(self.thresholds[layer])

    def intervals(self, layer: str) -> Tensor:
        """1-D int64: steps between consecutive spikes of a neuron, for all neurons and images of a layer."""
        trains = self._of(layer, self.spikes).flatten(1).T.contiguous()  # neuron by neuron
        neuron, step = trains.nonzero(as_tuple=True)
        return step.diff()[neuron.diff() == 0]

    def interval_statistics(self) -> dict[str, Intervals]:
        """Layer → `Intervals`."""
        return {name: _statistics(self.intervals(name).double()) for name in self.spikes}

    def to_numpy(self) -> dict[str, Any]:
        """The same as NumPy arrays: {"spikes": {layer: array}, "membranes": {layer: array}, "thresholds": {layer: number},
        "heights": {layer: number}, "steps": array}.
        """
        return {
            "spikes": {name: x.numpy() for name, x in self.spikes.items()},
            "membranes": {name: x.numpy() for name, x in self.membranes.items()},
            "thresholds": dict(self.thresholds), "heights": dict(self.heights), "steps": self.steps.numpy(),
        }  # fmt: skip

    def _of(self, layer: str, tensors: Mapping[str, Tensor]) -> Tensor:
        if layer not in tensors:
            raise ConfigError(unknown("recorded layer", layer, tensors))
        return tensors[layer]

    def __repr__(self) -> str:
        steps, images = next(iter(self.spikes.values())).shape[:2]
        shown = f"T={self.timesteps}, {steps} steps, {images} images, {len(self.spikes)} layers"
        return f"Recording({self.neuron} {self.schedule}, {shown})"


def _whole(threshold: float) -> float:
    """An integer threshold as an integer, so that integer membranes stay integers."""
    return int(threshold) if float(threshold).is_integer() else threshold


def _statistics(intervals: Tensor) -> Intervals:
    if not len(intervals):
        nan = float("nan")
        return Intervals(0, nan, nan, nan, nan)
    numbers = (intervals.mean(), intervals.std(correction=0), intervals.min(), intervals.max())
    return Intervals(len(intervals), *map(float, numbers))


def chosen_layers(wanted: str | Sequence[str] | None, known: Sequence[str], default: Sequence[str]) -> tuple[str, ...]:
    """The known layers of these names or patterns ("stage1.*"), in order; the default ones for None.

    Raises:
        ConfigError: a name or pattern that fits no layer.
    """
    if wanted is None:
        return tuple(default)
    found: set[str] = set()
    for name in [wanted] if isinstance(wanted, str) else wanted:
        fits = [other for other in known if fnmatchcase(other, str(name))]
        if not fits:
            raise ConfigError(unknown("layer of neurons", name, known))
        found |= set(fits)
    if not found:
        raise ConfigError("layers is empty; name a layer, or leave it out to record all")
    return tuple(name for name in known if name in found)


class Chosen:
    """The positions of a layer that are recorded, of [B, ...] tensors."""

    def __init__(self, name: str, shape: tuple[int, ...], positions: Positions | None) -> None:
        given = positions.get(name) if isinstance(positions, Mapping) else positions
        self.shape = shape
        self.positions = None if given is None else tuple(tuple(int(i) for i in position) for position in given)
        for position in self.positions or ():
            fits = len(position) == len(shape) and all(-n <= i < n for i, n in zip(position, shape, strict=True))
            if not fits:
                raise ConfigError(f"position {position} is not in {name}, whose neurons have the shape {list(shape)}")
        if self.positions == ():
            raise ConfigError(f"positions of {name} are empty; give some, or leave them out to record all")

    def of(self, x: Tensor) -> Tensor:
        """[B, P] of x [B, ...], or x itself; on the CPU."""
        x = x.detach()
        if self.positions is not None:
            index = tuple(torch.tensor(self.positions).T.unbind())
            x = x.movedim(0, -1)[index].movedim(-1, 0)
        return x.cpu()


def check_positions(positions: Positions | None, layers: Sequence[str]) -> None:
    """Raise an error for positions of layers that are not recorded."""
    for name in positions if isinstance(positions, Mapping) else ():
        if name not in layers:
            raise ConfigError(unknown("recorded layer", name, layers))


def joined_recordings(parts: Sequence[Recording]) -> Recording:
    """The recording of all images, of recordings of some each; images that ended are silent and keep their membranes."""
    longest = max(len(next(iter(part.spikes.values()))) for part in parts)
    first = parts[0]

    def extended(x: Tensor, *, silent: bool) -> Tensor:
        missing = longest - len(x)
        last = torch.zeros_like(x[-1:]) if silent else x[-1:]
        return torch.cat([x, last.expand(missing, *x.shape[1:])]) if missing else x

    return Recording(
        {name: torch.cat([extended(p.spikes[name], silent=True) for p in parts], 1) for name in first.spikes},
        {name: torch.cat([extended(p.membranes[name], silent=False) for p in parts], 1) for name in first.membranes},
        first.thresholds, first.heights, torch.cat([p.steps for p in parts]),
        first.timesteps, first.neuron, first.schedule, first.shapes, first.positions,
    )  # fmt: skip
