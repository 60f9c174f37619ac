"""The ledger: exact counts of what a spiking network and its quantized network do, by layer and step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.errors import ConfigError
from nbsnn.inputs import require_type
from nbsnn.integer.fanout import Synapses, synapses
from nbsnn.integer.lower import lower
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.program import Program
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.spiking.schedules import schedule_named
from nbsnn.wrappers import unwrap

STEP_COUNTS = ("additions", "weight_fetches", "arrivals", "updates")  # of `LayerLedger`, by step


@dataclass(frozen=True, eq=False)
class Sent:
    """Spikes that a layer of neurons sends, or changes of a max pool: [steps] int64 of each sign, over all images."""

    positive: Tensor
    negative: Tensor

    @property
    def total(self) -> int:
        """Of either sign."""
        return int(self.positive.sum() + self.negative.sum())


@dataclass(frozen=True, eq=False)
class LayerLedger:
    """A layer of neurons with the synapses that feed it, or the output. Sums over all images; [steps] are int64.

    Attributes:
        name: of the neurons, such as "stage1.0.first.act", or "head".
        neurons, weights: per network.
        sent: the spikes that the neurons send; None for the output.
        additions: [steps] spikes that arrive at a synapse: each adds or subtracts a weight, or one spike's height for skips.
        weight_fetches: [steps] those of synapses with a weight.
        arrivals: [steps] spikes that the layer receives, once for each of its branches, whatever their fan-out.
        updates: [steps] neurons whose membrane is read and written: each neuron in each step of an image; under "barrier" in
            the window in which it integrates and in that in which it sends.
        constant_additions: additions of a bias and of the image's current, one per neuron in each of the first T steps.
        image_products: products of weights with pixels, if they are computed once and kept; T times as many otherwise.
        rescalings: products of a branch's sum with its multiplier, where several branches meet: a neuron with one branch has
            the factor in its threshold.
        macs, skips: products, and additions of skips, of the quantized network.
        activations: values that the layer reads in the quantized network, once for each of its branches.
        rescalings_quantized: as `rescalings`, of the quantized network.
    """

    name: str
    neurons: int
    weights: int
    sent: Sent | None
    additions: Tensor
    weight_fetches: Tensor
    arrivals: Tensor
    updates: Tensor
    constant_additions: int
    image_products: int
    rescalings: int
    macs: int
    skips: int
    activations: int
    rescalings_quantized: int

    @property
    def activity(self) -> float | None:
        """Spikes per synapse and image, over all steps; None if only the image feeds the layer."""
        dense = self.macs + self.skips
        return int(self.additions.sum()) / dense if dense else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {key: value.tolist() if isinstance(value, Tensor) else value for key, value in vars(self).items()}
        sent = self.sent and {"positive": self.sent.positive.tolist(), "negative": self.sent.negative.tolist()}
        return values | {"sent": sent, "activity": self.activity}


@dataclass(frozen=True, eq=False)
class EnergyLedger:
    """Result of `energy_ledger`.

    Attributes:
        layers: the layers of neurons in order, and the outputs.
        pools: max pool → changes that it sends in place of its neurons' spikes.
        images: number of images.
        timesteps: T.
        neuron, schedule: how the network ran.
        steps: [images] int64, steps of each image.
    """

    layers: tuple[LayerLedger, ...]
    pools: dict[str, Sent]
    images: int
    timesteps: int
    neuron: str
    schedule: str
    steps: Tensor

    @cached_property
    def totals(self) -> dict[str, int]:
        """Each count over all layers, steps and images; `spikes` of either sign, without the changes of max pools."""
        summed = {key: sum(int(getattr(layer, key).sum()) for layer in self.layers) for key in STEP_COUNTS}
        single = ("constant_additions", "image_products", "rescalings", "macs", "skips", "activations", "rescalings_quantized")
        summed |= {key: sum(getattr(layer, key) for layer in self.layers) for key in single}
        return {"spikes": sum(layer.sent.total for layer in self.layers if layer.sent)} | summed

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        pools = {name: {"positive": s.positive.tolist(), "negative": s.negative.tolist()} for name, s in self.pools.items()}
        return {
            "layers": [layer.to_dict() for layer in self.layers], "pools": pools, "images": self.images,
            "timesteps": self.timesteps, "neuron": self.neuron, "schedule": self.schedule,
            "steps_mean": float(self.steps.double().mean()), "totals": self.totals,
        }  # fmt: skip


@checked_arguments
def energy_ledger(
    network: IntegerNetwork | nn.Module,
    images: Tensor,
    *,
    neuron: str | None = None,
    schedule: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> EnergyLedger:
    """Count what a spiking network does on some images, and what its quantized network does on the same.

    Synapses are counted as in `nbsnn.count_synops`: every spike at every kernel element that it reaches. Comparisons of
    thresholds and of max pools are not counted. `nbsnn.energy.pricing.price` turns the counts into energy.

    Args:
        network: the result of `nbsnn.lower`, or a quantized network, which is lowered.
        images: [B, C, H, W], as in `IntegerNetwork.simulate`.
        neuron, schedule: as in `nbsnn.to_spiking`; those of the network's options unless given.
        progress: called with the number of images of each batch.
    Raises:
        LoweringError, ConfigError, ConversionError: as in `nbsnn.lower` and `IntegerNetwork.simulate`.
    """
    integer = _integer(network, images)
    program = integer.program
    found = synapses(program)
    frames = _Frames(program, found)
    taken, ran = integer.watch(images, frames.add, neuron=neuron, schedule=schedule, progress=progress)
    return frames.ledger(taken, neuron=ran[0], schedule=ran[1])


def _integer(network: IntegerNetwork | nn.Module, images: Tensor) -> IntegerNetwork:
    require_type(network, (IntegerNetwork, nn.Module), "network", "the result of nbsnn.lower or nbsnn.quantize")
    if isinstance(network, IntegerNetwork):
        return network
    if isinstance(unwrap(network), SpikingNetwork):
        raise ConfigError("network is a spiking one; give the quantized network that it was made from, and its schedule")
    return lower(network, images[:1])


class _Frames:
    """Spikes of each value and step, summed over images and kept by place."""

    def __init__(self, program: Program, found: dict[str, Synapses]) -> None:
        self.program, self.synapses = program, found
        self.places: dict[str, dict[int, Tensor]] = {node.name: {} for node in self.program.sending}
        self.net: dict[str, dict[int, int]] = {node.name: {} for node in self.program.sending}

    def add(self, name: str, step: int, images: Tensor, spikes: Tensor | None, membrane: Tensor | None) -> None:
        """The `watch` of the torch backend."""
        if spikes is None:
            return
        fired = spikes.abs().sum(0, dtype=torch.int64).cpu()
        self.places[name][step] = self.places[name].get(step, 0) + fired
        self.net[name][step] = self.net[name].get(step, 0) + int(spikes.sum(dtype=torch.int64))

    def ledger(self, steps: Tensor, *, neuron: str, schedule: str) -> EnergyLedger:
        """The counts, given the steps of each image [B]."""
        order = schedule_named(schedule).order
        longest = int(steps.max())
        running = (steps[None, :] >= torch.arange(1, longest + 1)[:, None]).sum(1)  # images in each step
        sent = {name: self._sent(name, longest) for name in self.places}
        depths = self.program.depths | {name: self.program.depth for name in self.synapses if name not in self.program.depths}
        layers = []
        for name, found in self.synapses.items():
            is_unit = name in sent
            active = running if order == "together" else self._windows(depths[name], len(steps), longest, sends=is_unit)
            layers.append(self._layer(name, found, sent, active, len(steps)))
        pools = {node.name: sent[node.name] for node in self.program.sending if node.name not in self.synapses}
        return EnergyLedger(tuple(layers), pools, len(steps), self.program.timesteps, neuron, schedule, steps)

    def _windows(self, depth: int, images: int, longest: int, *, sends: bool) -> Tensor:
        """[steps] images of which a layer is updated, if layers take turns."""
        T, active = self.program.timesteps, torch.zeros(longest, dtype=torch.int64)
        first = (depth - 1) * T if sends else depth * T
        active[first : (depth + 1) * T] = images
        return active

    def _sent(self, name: str, longest: int) -> Sent:
        total = torch.tensor([int(self.places[name].get(step, torch.zeros(1)).sum()) for step in range(1, longest + 1)])
        net = torch.tensor([self.net[name].get(step, 0) for step in range(1, longest + 1)])
        return Sent((total + net) // 2, (total - net) // 2)

    def _layer(self, name: str, found: Synapses, sent: dict[str, Sent], active: Tensor, images: int) -> LayerLedger:
        T, longest = self.program.timesteps, len(active)
        fetches, plain = (self._reached(reach, longest) for reach in (found.weighted, found.plain))
        arrivals = torch.zeros(longest, dtype=torch.int64)
        for sender in found.senders:
            arrivals = arrivals + sent[sender].positive + sent[sender].negative
        updates = active * found.neurons
        meeting = max(found.changing - 1, 0)
        is_unit = name in sent
        return LayerLedger(
            name=name, neurons=found.neurons, weights=found.weights, sent=sent.get(name), additions=fetches + plain,
            weight_fetches=fetches, arrivals=arrivals, updates=updates,
            constant_additions=found.neurons * images * (T if is_unit else 1) * found.driven,
            image_products=found.image_macs * images, rescalings=int(updates.sum()) * meeting if is_unit else 0,
            macs=found.macs * images, skips=found.skips * images,
            activations=images * sum(self._neurons(sender) for sender in found.senders),
            rescalings_quantized=found.neurons * meeting * images if is_unit else 0,
        )  # fmt: skip

    def _reached(self, reach: dict[str, Tensor], longest: int) -> Tensor:
        """[steps] spikes times the synapses that each reaches."""
        total = torch.zeros(longest, dtype=torch.int64)
        for name, fan_out in reach.items():
            for step, fired in self.places[name].items():
                if step <= longest:
                    total[step - 1] += (fired * fan_out).sum()
        return total

    def _neurons(self, sender: str) -> int:
        return int(torch.Size(self.program.shapes[sender]).numel())
