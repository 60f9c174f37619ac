"""The value of spikes with the gradient of the quantized network.

Counting spikes has no gradient. But between two neurons stands an affine function, so that a layer's mean current is what
the quantized layer of the same name makes of its inputs' rates. That layer is the *proxy*: forward gives what the spikes
gave, backward takes the quantized activation's straight-through gradient.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nbsnn.quant.layers import QuantReLU
from nbsnn.spiking.convert import to_spiking
from nbsnn.spiking.functional import unfold
from nbsnn.spiking.neuron import IFNeuron
from nbsnn.surgery import tap

_Hook = Callable[[nn.Module, Any, Tensor], Tensor]


class SpikingProxy:
    """A copy of a quantized network, and its spiking form under the schedule "fixed" on the very same parameters.

    Both stay in evaluation mode: norm statistics are frozen, since the spiking form knows no others. Thresholds are frozen.

    Attributes:
        proxy: the copy, to be trained. Its own quantized output means nothing once it is.
        spiking: what it is trained for.
        acts, neurons: name → activation of the proxy, neuron of the spiking form.
    """

    def __init__(self, quantized: nn.Module, example: Tensor, *, neuron: str = "signed") -> None:
        self.proxy = channels_last_copy(quantized)
        self.spiking = to_spiking(self.proxy, example.to(next(quantized.parameters())), neuron=neuron, schedule="fixed")
        share_tensors_(self.spiking.network, self.proxy)
        self.acts = {name: m for name, m in self.proxy.named_modules() if isinstance(m, QuantReLU)}
        self.neurons = {name: m for name, m in self.spiking.network.named_modules() if isinstance(m, IFNeuron)}
        self._frozen: list[nn.Parameter] = []
        self._freeze_(act.threshold for act in self.acts.values())

    @property
    def timesteps(self) -> int:
        """T."""
        return self.spiking.timesteps

    def freeze_weights_(self) -> None:
        """Leave only what has one value per channel to be trained: norm scales and biases."""
        self._freeze_(p for p in self.proxy.parameters() if p.dim() != 1)

    def release_(self) -> None:
        """Leave the parameters as ordinary ones: without gradients, nothing frozen that was not before."""
        self.proxy.zero_grad(set_to_none=True)
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    def _freeze_(self, parameters: Iterable[nn.Parameter]) -> None:
        chosen = [p for p in parameters if p.requires_grad]
        for parameter in chosen:
            parameter.requires_grad_(False)
        self._frozen += chosen

    @torch.no_grad()
    def rates(self, images: Tensor, *, until: str | None = None) -> dict[str, Tensor]:
        """Name → spiking rate [B, ...], the mean over T of spikes · θ; of the neurons up to `until` alone, if given."""
        with tap(self.neurons, lambda output: unfold(output, self.timesteps).mean(0)) as seen, _stop_after(self.neurons, until):
            self.spiking(images)
        return {name: outputs[0] for name, outputs in seen.items() if outputs}

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of the spiking form, with the gradient of the quantized one through all layers."""
        with _hooks(self.acts, {name: _valued(rate) for name, rate in self.rates(images).items()}):
            logits: Tensor = self.proxy(images)
        return logits

    def activation(self, images: Tensor, name: str) -> Tensor:
        """Rate [B, ...] of one neuron layer, with the gradient of its unit; what comes before is a constant."""
        rates = self.rates(images, until=name)
        hooks = {key: _constant(rate) for key, rate in rates.items()} | {name: _valued(rates[name])}
        outputs: list[Tensor] = []
        with _hooks(self.acts, hooks), tap({name: self.acts[name]}, outputs.append), _stop_after(self.acts, name):
            self.proxy(images)
        return outputs[0]


class Unit(NamedTuple):
    """One activation with all its branches: convolution and norm, a shortcut's projection.

    `bias` names the parameter that shifts the current of each channel by its own value; None if there is no such.
    """

    name: str
    parameters: dict[str, nn.Parameter]
    bias: str | None


def find_units(pair: SpikingProxy, example: Tensor) -> list[Unit]:
    """The units of the proxy, in the order in which it runs them; the last one, named "", is the head.

    What belongs to a unit follows from the gradient of its current, with every earlier activation cut off: so this holds
    for any topology.
    """
    currents: dict[str, Tensor] = {}

    def cut(name: str) -> _Hook:
        def hook(_module: nn.Module, args: Any, output: Tensor) -> Tensor:
            currents[name] = args[0]
            return output.detach()

        return hook

    with torch.enable_grad(), _hooks(pair.acts, {name: cut(name) for name in pair.acts}):
        currents[""] = pair.proxy(example)
    named = {name: p for name, p in pair.proxy.named_parameters() if p.requires_grad}
    units = []
    for name, current in currents.items():
        if not current.requires_grad:
            continue  # no parameter between this activation and the ones before
        channel = torch.arange(1, current.shape[1] + 1).to(current)  # tells the channels apart
        total = (current * channel.view(1, -1, *[1] * (current.dim() - 2))).sum()
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        own = {key: g for key, g in zip(named, gradients, strict=True) if g is not None}
        shift = channel * (current.numel() / current.shape[1])
        off = {key: float((g - shift).abs().max()) for key, g in own.items() if g.shape == shift.shape}
        biases = [key for key in sorted(off, key=lambda key: off[key]) if off[key] <= 1e-3 * float(shift.max())]
        units.append(Unit(name, {key: named[key] for key in own}, biases[0] if biases else None))
    return units


def channels_last_copy(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, laid out for fast convolutions."""
    duplicate: nn.Module = copy.deepcopy(network).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return duplicate


def share_tensors_(network: nn.Module, source: nn.Module) -> None:
    """Let a network of the same tree use the parameters and buffers of `source` themselves."""
    modules = dict(network.named_modules())
    for name, module in source.named_modules():
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for key, tensor in tensors:
            setattr(modules[name], key, tensor)


def activation_of(network: nn.Module, module: nn.Module, images: Tensor) -> Tensor:
    """The output of one module; the network runs no further."""
    with tap({"": module}, lambda output: output) as seen, _stop_after({"": module}, ""):
        network(images)
    output: Tensor = seen[""][0]
    return output


def _valued(rate: Tensor) -> _Hook:
    return lambda _module, _args, output: rate + (output - output.detach())


def _constant(rate: Tensor) -> _Hook:
    return lambda _module, _args, _output: rate


@contextmanager
def _hooks(modules: Mapping[str, nn.Module], hooks: Mapping[str, _Hook]) -> Iterator[None]:
    handles = [modules[name].register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Stopped(Exception):
    pass


@contextmanager
def _stop_after(modules: Mapping[str, nn.Module], name: str | None) -> Iterator[None]:
    """End the forward pass inside the context once this module has answered; None lets it run."""

    def stop(_module: nn.Module, _args: Any, _output: Tensor) -> Tensor:
        raise _Stopped

    with _hooks(modules, {} if name is None else {name: stop}), suppress(_Stopped):
        yield
