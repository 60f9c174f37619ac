"""What the activations of a network do on some images: rates, clipped currents, dead channels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.hooks import hooked
from nbsnn.quant.layers import QuantReLU
from nbsnn.surgery import evaluation_mode

IMAGES = 100  # enough for rates to a percent


@dataclass(frozen=True)
class LayerActivity:
    """One activation layer.

    `rate` is the mean count as a share of L, that is, of one spike per time step; `clipped` the share of currents above the
    threshold; `dead` the share of channels without a spike for any of the images. All are in [0, 1].
    """

    name: str
    threshold: float
    rate: float
    clipped: float
    dead: float


class _Tally:
    """Sums over the calls of one layer."""

    def __init__(self) -> None:
        self.neurons, self.spikes, self.above = 0, 0.0, 0
        self.alive: Tensor | None = None  # [channels]

    def add(self, act: QuantReLU, current: Tensor, output: Tensor) -> None:
        self.neurons += output.numel()
        self.spikes += float(output.double().sum() / act.clip())
        self.above += int((current > act.clip()).sum())
        alive = output.movedim(1, 0).flatten(1).any(1) if output.ndim > 1 else output.any().reshape(1)
        self.alive = alive if self.alive is None else self.alive | alive

    def of(self, name: str, act: QuantReLU) -> LayerActivity:
        assert self.alive is not None
        dead = 1 - float(self.alive.double().mean())
        return LayerActivity(name, float(act.clip()), self.spikes / self.neurons, self.above / self.neurons, dead)


@torch.no_grad()
def measure_activity(network: nn.Module, images: Tensor) -> tuple[LayerActivity, ...]:
    """Activity of the quantized activations of a network, in its order; none for a float network.

    Args:
        images: [B, ...] normalized, on the network's device.
    """
    acts = {name: module for name, module in network.named_modules() if isinstance(module, QuantReLU)}
    tallies = {name: _Tally() for name in acts}

    def note(name: str) -> Any:
        return lambda act, given, output: tallies[name].add(act, given[0], output)

    handles = [act.register_forward_hook(note(name)) for name, act in acts.items()]
    with evaluation_mode(network), hooked(handles):
        if acts:
            network(images)
    return tuple(tallies[name].of(name, act) for name, act in acts.items() if tallies[name].neurons)


def activity_line(layers: Sequence[LayerActivity]) -> str:
    """The range of rates, and the worst layers: `rates 0.08 to 0.31, clipped up to 2.1 % (stem.act), no dead channels`."""
    rates = [layer.rate for layer in layers]
    clipped, dead = max(layers, key=lambda x: x.clipped), max(layers, key=lambda x: x.dead)
    lost = f"dead channels up to {100 * dead.dead:.1f} % ({dead.name})" if dead.dead else "no dead channels"
    return f"rates {min(rates):.2f} to {max(rates):.2f}, clipped up to {100 * clipped.clipped:.1f} % ({clipped.name}), {lost}"
