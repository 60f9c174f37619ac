"""Convert a quantized network to a spiking one: replace activations and max pools, after an audit of the rest."""

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.errors import ConversionError
from nbsnn.finite import check_network
from nbsnn.inputs import as_images, to_network
from nbsnn.pooling import MAX_POOLS
from nbsnn.precision import full_float32
from nbsnn.quant.audit import audit
from nbsnn.quant.layers import QuantReLU, quantized_once
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.spiking.neuron import IFNeuron, check_precision
from nbsnn.spiking.pooling import TemporalPool
from nbsnn.spiking.schedules import Schedule, check_pair, check_timesteps, exact_schedules, schedule_named
from nbsnn.surgery import replace_modules_
from nbsnn.wrappers import as_network, copied


@checked_arguments
@full_float32()
@torch.inference_mode(mode=False)  # within inference mode, parameters of the result could never be trained
def to_spiking(
    quantized: nn.Module,
    example: Tensor,
    *,
    neuron: str | None = None,
    schedule: str = "fixed",
    gradient: str = "proxy",
    timesteps: int | None = None,
) -> SpikingNetwork:
    """The spiking form of a quantized network, as a new object; the source does not change.

    Args:
        quantized: result of `nbsnn.quantize`. Batch norm uses its running statistics in any mode.
        example: [B, C, H, W] images for the audit's dry run; one is enough.
        neuron: "signed" or "unsigned"; unless given, signed, or unsigned under "barrier".
        schedule: "fixed" (published: stop after T = 2^b − 1 steps, not exact), "settle" (signed; continue until no neuron can
            fire: exact), "barrier" (unsigned; layer after layer: exact, fewest spikes), or a registered one
                (`nbsnn.spiking.schedules`).
        gradient: "proxy" or "surrogate"; see `SpikingNetwork`.
        timesteps: T, for a check only; the bits of the activations determine it, T = 2^b − 1.
    Raises:
        ConversionError: the network has an operation that spikes cannot represent, another T, values that are not finite, or
            half precision with an exact schedule; the message names the layer and the remedy.
        ConfigError: unknown gradient.
    """
    chosen, name = check_pair(neuron, schedule)
    source = as_network(quantized, ConversionError)
    if isinstance(source, SpikingNetwork):
        raise ConversionError("the network is spiking already; convert the quantized network that it was made from")
    example = as_images(example, "example", network=source, finite=True, error=ConversionError)
    check_network(source, ConversionError)
    example = to_network(example, source)
    check_precision(schedule_named(name), source, example.device)
    network = copied(source).eval()
    with quantized_once(network):
        flow = audit(network, example)
    steps = _timesteps(network, schedule_named(name))
    check_timesteps(timesteps, steps)
    acts = [m for m in network.modules() if isinstance(m, QuantReLU)]
    neurons: dict[nn.Module, nn.Module] = {act: IFNeuron(act, timesteps=steps, neuron=chosen, schedule=name) for act in acts}
    pools: dict[nn.Module, nn.Module] = {m: TemporalPool(m) for m in network.modules() if isinstance(m, MAX_POOLS)}
    spiking = SpikingNetwork(
        replace_modules_(network, neurons | pools), timesteps=steps, neuron=chosen, schedule=name, depth=flow.depth,
        depths=flow.depths, image_shape=tuple(example.shape[1:]), gradient=gradient,
    )  # fmt: skip
    return spiking.train(source.training)


def to_quantized(spiking: SpikingNetwork) -> nn.Module:
    """The quantized form of a spiking network, as a new object with copies of its parameters; the inverse of `to_spiking`."""
    network = copied(spiking.network).eval()
    before: dict[nn.Module, nn.Module] = {m: m.pool for m in network.modules() if isinstance(m, TemporalPool)}
    before |= {m: QuantReLU(m.bits, m.threshold, limit=m.limit) for m in network.modules() if isinstance(m, IFNeuron)}
    for neuron, act in before.items():
        if isinstance(neuron, IFNeuron):
            act.threshold = neuron.threshold  # in its type, on its device, and shared where it is shared
    return replace_modules_(network, before).eval()


def _timesteps(quantized: nn.Module, schedule: Schedule) -> int:
    levels = {name: m.levels for name, m in quantized.named_modules() if isinstance(m, QuantReLU)}
    timesteps = max(levels.values())
    if not schedule.exact and min(levels.values()) != timesteps:
        name = min(levels, key=lambda n: levels[n])
        raise ConversionError(
            f"{name} has {levels[name]} levels where others have {timesteps}: in a fixed number of steps this is not exact; "
            f"use {exact_schedules()}, or give all layers the same act_bits with nbsnn.set_bits_"
        )
    return timesteps
