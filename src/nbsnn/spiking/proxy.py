"""The value of spikes with the gradient of the quantized network.

Spike counts have no gradient. But the function between two neurons is affine, so a layer's mean current is what the quantized
layer of the same name computes from its inputs' rates. That layer is the *proxy*: its forward pass has the values of the
spikes, its backward pass the straight-through gradient of the quantized activation.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from nbsnn.quant.functional import quantize_activation
from nbsnn.spiking.call import Call, running
from nbsnn.spiking.neuron import IFNeuron
from nbsnn.spiking.schedules import schedule_named


def neurons_of(network: nn.Module) -> dict[str, IFNeuron]:
    """Name → neuron layer."""
    return {name: module for name, module in network.named_modules() if isinstance(module, IFNeuron)}


def rates_of(network: nn.Module, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Neuron layer → rate [B, ...], the mean over T of spikes · height, from its net counts."""
    neurons = neurons_of(network)
    return {name: count * (neurons[name].height() / neurons[name].timesteps) for name, count in counts.items()}


def proxy_activation(neuron: IFNeuron, current: Tensor) -> Tensor:
    """The quantized activation of a mean current, with its straight-through gradient."""
    tolerance = schedule_named(neuron.schedule).tie_tolerance(current.dtype)
    return quantize_activation(current, neuron.clip(), bits=neuron.bits, tolerance=tolerance)


def run_on_means(network: nn.Module, images: Tensor, answer: Callable[[str, IFNeuron, Tensor], Tensor]) -> Any:
    """Run a module tree with neurons on means over time, in one pass over the images.

    Args:
        network: the tree of a `SpikingNetwork`.
        images: [B, C, H, W].
        answer: from a neuron layer's name, the layer and its mean current [B, ...] to its mean output [B, ...].
    """
    names = {neuron: name for name, neuron in neurons_of(network).items()}
    call = Call(1, stage="mean", answer=lambda neuron, current: answer(names[neuron], neuron, current))
    with running(call):
        return network(images)
