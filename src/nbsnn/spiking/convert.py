"""From a quantized network to a spiking one: swap the activations, after an audit of the rest."""

from typing import cast, get_args

import torch
from torch import Tensor, nn

from nbsnn.errors import ConversionError, unknown
from nbsnn.finite import check_network
from nbsnn.inputs import as_images, to_network
from nbsnn.precision import full_float32
from nbsnn.quant.audit import audit
from nbsnn.quant.layers import QuantReLU
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.spiking.neuron import Clock, IFNeuron, Neuron, Schedule
from nbsnn.surgery import copied, replace_modules_

VALID_PAIRS: tuple[tuple[Neuron, Schedule], ...] = (
    ("unsigned", "fixed"),
    ("signed", "fixed"),
    ("signed", "settle"),
    ("unsigned", "barrier"),
)


def check_pair(neuron: str | None, schedule: str) -> tuple[Neuron, Schedule]:
    """A valid neuron and schedule; None stands for the schedule's own neuron (signed, unsigned under "barrier")."""
    if schedule not in get_args(Schedule):
        raise ConversionError(unknown("schedule", schedule, get_args(Schedule)))
    chosen = neuron or ("unsigned" if schedule == "barrier" else "signed")
    if chosen not in get_args(Neuron):
        raise ConversionError(unknown("neuron", chosen, get_args(Neuron)))
    if (chosen, schedule) not in VALID_PAIRS:
        why = (
            "settling takes spikes back; use neuron='signed'"
            if schedule == "settle"
            else "nothing is ever taken back behind a barrier; use neuron='unsigned'"
        )
        raise ConversionError(f"neuron={chosen!r} does not go with schedule={schedule!r}: {why}")
    return cast(Neuron, chosen), cast(Schedule, schedule)


@full_float32()
@torch.inference_mode(mode=False)  # within inference mode, parameters of the result could never be trained
def to_spiking(quantized: nn.Module, example: Tensor, *, neuron: str | None = None, schedule: str = "fixed") -> SpikingNetwork:
    """The spiking form of a quantized network, as a new object; the source is untouched.

    Args:
        quantized: result of `nbsnn.quantize`, in evaluation mode.
        example: [B, C, H, W] images for the audit's dry run; one is enough.
        neuron: "signed" or "unsigned"; unless given, signed, or unsigned under "barrier".
        schedule: "fixed" (the published one: T = 2^b − 1 steps and stop, not exact), "settle" (signed; steps on until no neuron
            can fire: exact) or "barrier" (unsigned; layer after layer: exact, fewest spikes).
    Raises:
        ConversionError: the network does something that spikes cannot follow, or holds numbers that are not finite; the
            message names the layer and the remedy.
    """
    chosen, plan = check_pair(neuron, schedule)
    example = as_images(example, "example", network=quantized, finite=True, error=ConversionError)
    if isinstance(quantized, SpikingNetwork):
        raise ConversionError("the network is spiking already; convert the quantized network that it was made from")
    timesteps = _timesteps(quantized, plan)
    check_network(quantized, ConversionError)
    example = to_network(example, quantized)
    clock = Clock(timesteps)
    network = copied(quantized)
    depth = audit(network, example).depth
    acts = [m for m in network.modules() if isinstance(m, QuantReLU)]
    network = replace_modules_(network, {act: IFNeuron(act, clock, neuron=chosen, schedule=plan) for act in acts})
    return SpikingNetwork(network, clock, neuron=chosen, schedule=plan, depth=depth, image_shape=tuple(example.shape[1:]))


def _timesteps(quantized: nn.Module, schedule: Schedule) -> int:
    levels = {name: m.levels for name, m in quantized.named_modules() if isinstance(m, QuantReLU)}
    if not levels:
        raise ConversionError("the network has no quantized activation; call nbsnn.quantize on the float network first")
    timesteps = max(levels.values())
    if schedule == "fixed" and min(levels.values()) != timesteps:
        name = min(levels, key=lambda n: levels[n])
        raise ConversionError(
            f"{name} has {levels[name]} levels where others have {timesteps}: in a fixed number of steps this is not exact; "
            "use schedule='settle' or 'barrier', or give all layers the same act_bits with nbsnn.set_bits_"
        )
    return timesteps
