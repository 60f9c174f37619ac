"""The spiking network in fine-tuning, unit by unit, with the gradient of `nbsnn.spiking.proxy`."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nbsnn.gradients import with_values
from nbsnn.hooks import hooked
from nbsnn.quant.layers import quantized_once
from nbsnn.shapes import per_channel
from nbsnn.spiking.call import Call, running
from nbsnn.spiking.convert import to_spiking
from nbsnn.spiking.functional import fold
from nbsnn.spiking.neuron import IFNeuron
from nbsnn.spiking.proxy import neurons_of, proxy_activation, rates_of, run_on_means
from nbsnn.surgery import tap


class SpikingProxy:
    """The spiking form of a quantized network under the schedule "fixed", for training. Batch norm statistics and thresholds
    are frozen.

    Attributes:
        spiking: the network in training; its logits have the proxy's gradient through all layers.
        network: its module tree, which is not a useful quantized network after training.
        neurons: name → neuron layer.
    """

    def __init__(self, quantized: nn.Module, example: Tensor, *, neuron: str = "signed") -> None:
        source = channels_last_copy(quantized)
        self.spiking = to_spiking(source, example.to(next(quantized.parameters())), neuron=neuron, schedule="fixed")
        self.network = self.spiking.network
        self.neurons = neurons_of(self.network)
        self._frozen: list[nn.Parameter] = []
        self._freeze_(neuron.threshold for neuron in self.neurons.values())

    @property
    def timesteps(self) -> int:
        """T."""
        return self.spiking.timesteps

    def freeze_weights_(self) -> None:
        """Train only parameters with one value per channel: weights and biases of norms, and biases."""
        self._freeze_(p for p in self.network.parameters() if p.dim() != 1)

    def release_(self) -> None:
        """Restore the parameters after training: no gradients, and `requires_grad` as before."""
        self.network.zero_grad(set_to_none=True)
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    def _freeze_(self, parameters: Iterable[nn.Parameter]) -> None:
        chosen = [p for p in parameters if p.requires_grad]
        for parameter in chosen:
            parameter.requires_grad_(False)
        self._frozen += chosen

    @torch.no_grad()
    def rates(self, images: Tensor, *, until: str | None = None) -> dict[str, Tensor]:
        """Name → spiking rate [B, ...], the mean over T of spikes · θ; only of the neurons up to `until`, if given."""
        call, last = Call(self.timesteps, keep_counts=True), None if until is None else self.neurons[until]
        with quantized_once(self.network), running(call), _stop_after(last):
            self.network(fold(images.unsqueeze(0).expand(self.timesteps, *images.shape)))
        found = {name: call.state_of(neuron).count for name, neuron in self.neurons.items()}
        return rates_of(self.network, {name: count for name, count in found.items() if count is not None})

    def activation(self, images: Tensor, name: str) -> Tensor:
        """Rate [B, ...] of one neuron layer, with the gradient of its unit; earlier layers are constants."""
        rates, outputs = self.rates(images, until=name), []

        def answer(key: str, neuron: IFNeuron, current: Tensor) -> Tensor:
            if key != name:
                return rates[key]
            outputs.append(with_values(proxy_activation(neuron, current), rates[name]))
            raise _Stopped

        with suppress(_Stopped):
            run_on_means(self.network, images, answer)
        return outputs[0]


class TunedUnit(NamedTuple):
    """One activation with all its branches: convolution and norm, a shortcut's projection.

    `bias` names the parameter that shifts the current of each channel by its own value; None if there is none.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    bias: str | None


def find_units(pair: SpikingProxy, example: Tensor) -> list[TunedUnit]:
    """The units of the network in the order of execution; the last one, named "", is the head.

    The parameters of a unit are found from the gradient of its current, with all earlier activations detached, so this works
    for any topology.
    """
    currents: dict[str, Tensor] = {}

    def cut(name: str, neuron: IFNeuron, current: Tensor) -> Tensor:
        currents[name] = current
        return proxy_activation(neuron, current).detach()

    with torch.enable_grad():
        currents[""] = run_on_means(pair.network, example, cut)
    named = {name: p for name, p in pair.network.named_parameters() if p.requires_grad}
    units = []
    for name, current in currents.items():
        if not current.requires_grad:
            continue  # no parameter between this activation and earlier ones
        channel = torch.arange(1, current.shape[1] + 1).to(current)  # identifies the channels
        total = (current * per_channel(channel, current.dim() - 2)).sum()
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        own = {key: g for key, g in zip(named, gradients, strict=True) if g is not None}
        shift = channel * (current.numel() / current.shape[1])
        off = {key: float((g - shift).abs().max()) for key, g in own.items() if g.shape == shift.shape}
        biases = [key for key in sorted(off, key=lambda key: off[key]) if off[key] <= 1e-3 * float(shift.max())]
        units.append(TunedUnit(name, {key: named[key] for key in own}, biases[0] if biases else None))
    return units


def channels_last_copy(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, channels last for fast convolutions."""
    duplicate: nn.Module = copy.deepcopy(network).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return duplicate


def activation_of(network: nn.Module, module: nn.Module, images: Tensor) -> Tensor:
    """The output of one module; the network stops there."""
    with tap({"": module}, lambda output: output) as seen, _stop_after(module):
        network(images)
    output: Tensor = seen[""][0]
    return output


class _Stopped(Exception):
    pass


@contextmanager
def _stop_after(module: nn.Module | None) -> Iterator[None]:
    """Context manager that stops the forward pass after this module; None does not stop it."""

    def stop(_module: nn.Module, _args: object, _output: Tensor) -> Tensor:
        raise _Stopped

    with hooked([] if module is None else [module.register_forward_hook(stop)]), suppress(_Stopped):
        yield
