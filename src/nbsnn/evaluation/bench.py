"""Time each form of a network, and count its synaptic operations: one run, interleaved repeats, medians."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.evaluation.synops import Synops, count_synops
from nbsnn.integer.network import IntegerNetwork
from nbsnn.progress import ImageProgress
from nbsnn.spiking.schedules import valid_pairs
from nbsnn.surgery import evaluation_mode


def images_to_time(images: int, repeats: int) -> int:
    """The number of images that `bench` reports to `progress`: a warm-up round, the repeats, and the counting of spikes."""
    pairs = len(valid_pairs())
    return images * ((repeats + 1) * (3 + pairs) + pairs)  # float, quantized, counts, and spikes with every neuron and schedule


@dataclass(frozen=True)
class Speed:
    """One contender on B images at a time.

    Attributes:
        name: "float", "quantized", "counts", or "spikes" with neuron and schedule.
        backend: the code that ran an integer network, "native" or "torch"; "torch" for modules.
        seconds: median of the repeats, for all images; `fastest` and `slowest` are its spread.
        ratio: median over repeats of the time divided by the float net's.
        spikes, additions: per image; None for forms without spikes. An addition is one spike at one synapse (`count_synops`).
        steps: mean per image; None for forms without time steps.
    """

    name: str
    backend: str
    images: int
    seconds: float
    fastest: float
    slowest: float
    ratio: float
    spikes: float | None = None
    additions: float | None = None
    steps: float | None = None

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    @property
    def additions_per_second(self) -> float | None:
        return None if self.additions is None else self.additions * self.images_per_second

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        derived = {"images_per_second": self.images_per_second, "additions_per_second": self.additions_per_second}
        return asdict(self) | derived


@dataclass(frozen=True)
class Activity:
    """One unit under one spiking contender: spikes per neuron and step of T, in percent, and additions per image."""

    name: str
    neurons: int
    percent: float
    additions: float


@dataclass(frozen=True)
class Bench:
    """Result of `bench`; `layers` is contender → its units."""

    images: int
    batch_size: int
    repeats: int
    threads: int
    timesteps: int
    speeds: tuple[Speed, ...]
    layers: dict[str, tuple[Activity, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"speeds": [speed.to_dict() for speed in self.speeds]}


def bench(
    float_net: nn.Module,
    quantized: nn.Module,
    network: IntegerNetwork,
    images: Tensor,
    *,
    batch_size: int = 100,
    repeats: int = 5,
    pairs: Iterable[tuple[str, str]] | None = None,
    progress: ImageProgress | None = None,
) -> Bench:
    """Time the forms of one network in interleaved repeats.

    Args:
        float_net: its float form, run in channels last; the time does not depend on its weights.
        quantized, network: its quantized form, and the integer form of that.
        images: [N, C, H, W] normalised.
        pairs: neurons and schedules of the `spikes` engine; all unless given.
        progress: called with a title of the current step and the number of images done since the last call; `images_to_time`
            gives the total.
    """
    batches = list(torch.split(images, batch_size))
    ways = _ways(network, valid_pairs() if pairs is None else pairs)
    runs = _simulations(float_net, quantized) | {name: way.run for name, way in ways.items()}
    with evaluation_mode(float_net, quantized):
        times = timed_rounds(runs, batches, repeats=repeats, progress=progress)
    layers: dict[str, tuple[Activity, ...]] = {}
    speeds = []
    for name, seconds in times.items():
        speed = Speed(
            name, "torch", len(images), median(seconds), min(seconds), max(seconds),
            median(own / base for own, base in zip(seconds, times["float"], strict=True)),
        )  # fmt: skip
        if way := ways.get(name):
            speed = replace(speed, backend=way.backend)
            if way.options["engine"] == "spikes":
                cost = count_synops(way, images, progress=partial(progress or _silent, f"counting {name}"))
                layers[name] = _activities(cost)
                spikes, additions = cost.spikes / cost.images, cost.synops / cost.images
                speed = replace(speed, spikes=spikes, additions=additions, steps=float(cost.steps.double().mean()))
        speeds.append(speed)
    return Bench(len(images), batch_size, repeats, torch.get_num_threads(), network.timesteps, tuple(speeds), layers)


def timed_rounds(
    runs: Mapping[str, Callable[[Tensor], Any]],
    batches: Sequence[Tensor],
    *,
    repeats: int,
    progress: ImageProgress | None = None,
) -> dict[str, list[float]]:
    """Contender → seconds of each repeat over all batches; the contenders take turns, and a first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                for batch in batches:
                    run(batch)
                    if progress:
                        progress(name, len(batch))
                if repeat:
                    times[name].append(time.perf_counter() - start)
    return times


def _simulations(float_net: nn.Module, quantized: nn.Module) -> dict[str, Callable[[Tensor], Any]]:
    float_net = float_net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return {
        "float": lambda x: float_net(x.to(memory_format=torch.channels_last)),
        "quantized": lambda x: quantized(x.to(memory_format=torch.channels_last)),
    }


def _ways(network: IntegerNetwork, pairs: Iterable[tuple[str, str]]) -> dict[str, IntegerNetwork]:
    """Contender → the integer network with its options."""
    spikes = {
        f"spikes, {neuron} {schedule}": network.using(engine="spikes", neuron=neuron, schedule=schedule)
        for neuron, schedule in pairs
    }
    return {"counts": network.using(engine="counts")} | spikes


def _activities(cost: Synops) -> tuple[Activity, ...]:
    chances = cost.images * cost.timesteps  # possible spikes of one neuron
    return tuple(
        Activity(layer.name, layer.neurons, 100 * layer.spikes / (layer.neurons * chances), layer.synops / cost.images)
        for layer in cost.layers
    )


def _silent(_what: str, _count: int) -> None:
    pass
