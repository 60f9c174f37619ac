"""Synaptic operations of an integer network, counted for each spike and synapse."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from nbsnn.arguments import checked_arguments
from nbsnn.inputs import as_images, require_type
from nbsnn.integer.fanout import fan_outs, unit_of
from nbsnn.integer.network import IntegerNetwork

_BYTES_AT_A_TIME = 2**28  # of spikes by neuron


@dataclass(frozen=True)
class LayerSynops:
    """One unit: its neurons, and for all images its spikes of either sign and the synapses that they reach.

    Synapses behind a max pool are reached by the changes of the maximum, which are counted here for the unit that it pools.
    """

    name: str
    neurons: int
    spikes: int
    synops: int


@dataclass(frozen=True)
class Synops:
    """The exact cost of a network's spikes. A synop is one spike at one synapse: an addition of its weight.

    The image's products are not synops: its constant current needs multiplications, once for all steps.

    Attributes:
        layers: the units, in order.
        images: number of images.
        timesteps: T.
        steps: [B] int64, steps of each image.
    """

    layers: tuple[LayerSynops, ...]
    images: int
    timesteps: int
    steps: Tensor

    @property
    def spikes(self) -> int:
        """Of all units and images."""
        return sum(layer.spikes for layer in self.layers)

    @property
    def synops(self) -> int:
        """Of all units and images."""
        return sum(layer.synops for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "layers": [asdict(layer) for layer in self.layers], "images": self.images, "timesteps": self.timesteps,
            "steps_mean": float(self.steps.double().mean()), "spikes": self.spikes, "synops": self.synops,
        }  # fmt: skip


@checked_arguments
def count_synops(network: IntegerNetwork, images: Tensor, *, progress: Callable[[int], None] | None = None) -> Synops:
    """Count every spike at every synapse that it reaches: the spikes of each neuron times the fan-out of its position.

    This includes borders, strides, paddings, dilations, groups, pools and skips; see `fan_outs` for the definition of a
    synapse. A spike that does not change a maximum causes no addition behind a max pool; the comparisons of the pool itself are
    not counted.

    Args:
        network: with its options. For the engine "counts" the spikes are those of "barrier". Signed neurons run on the torch
            backend, which takes 4 to 11 times as long as the native one.
        images: [B, C, H, W], as in `IntegerNetwork.simulate`.
        progress: called with the number of images of each batch.
    Raises:
        LoweringError, ConfigError: as in `IntegerNetwork.simulate`.
    """
    require_type(network, IntegerNetwork, "network", "the result of nbsnn.lower(quantized, example)")
    program = network.program
    reach = {name: places.to(network.device) for name, places in fan_outs(program).items()}
    images = as_images(images, ranks=(len(program.pixels.shape) + 1,), pixels=True)
    spikes, synops, steps = dict.fromkeys(reach, 0), dict.fromkeys(reach, 0), []
    for batch in torch.split(images, max(1, _BYTES_AT_A_TIME // (4 * sum(places.numel() for places in reach.values())))):
        result = network.simulate(batch, keep_fired=True, **network.options)
        steps.append(result.steps)
        for name, fired in result.fired.items():
            spikes[name] += int(fired.sum())
            synops[unit_of(program, name)] += int((fired * reach[name]).sum())
        if progress:
            progress(len(batch))
    layers = tuple(LayerSynops(u.name, reach[u.name].numel(), spikes[u.name], synops[u.name]) for u in program.units)
    return Synops(layers, len(images), program.timesteps, torch.cat(steps))
