"""From a quantized network to a spiking one: swap the activations, audit the rest."""

import copy
from typing import cast, get_args

import torch
from torch import Tensor, nn

from nbsnn.errors import ConversionError, unknown
from nbsnn.finite import check_logits, check_network
from nbsnn.inputs import as_images, to_network
from nbsnn.quant.layers import QuantReLU
from nbsnn.spiking.audit import audit
from nbsnn.spiking.functional import fold
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.spiking.neuron import Clock, IFNeuron, Neuron, Schedule
from nbsnn.surgery import evaluation_mode, replace_modules_

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
    network = copy.deepcopy(quantized)
    acts = [m for m in network.modules() if isinstance(m, QuantReLU)]
    network = replace_modules_(network, {act: IFNeuron(act, clock, neuron=chosen, schedule=plan) for act in acts})
    depth = audit(network, fold(example.unsqueeze(0).expand(timesteps, *example.shape)))
    _check_images_stay_apart(quantized, example[:1])
    for module in network.modules():
        if isinstance(module, IFNeuron):
            module.reset()
    return SpikingNetwork(network, clock, neuron=chosen, schedule=plan, depth=depth, image_shape=tuple(example.shape[1:]))


@torch.no_grad()
def _check_images_stay_apart(quantized: nn.Module, image: Tensor) -> None:
    """Refuse a network that lets the images of a batch see each other: with time folded into the batch, steps would mix.

    The audit knows most such operations by name; a constant matrix over the batch axis, or an index into it, only shows here.
    """
    with evaluation_mode(quantized):
        try:
            first, second = (quantized(torch.cat([image, other])) for other in (-image, torch.zeros_like(image)))
        except (RuntimeError, IndexError) as error:
            reason = str(error).splitlines()[0]
            raise ConversionError(f"the network does not run on a batch of 2 images ({reason}); keep axis 0 free") from error
        check_logits(first, ConversionError, network=quantized, images=torch.cat([image, -image]))
    if not torch.allclose(first[0], second[0], rtol=1e-4, atol=1e-4):
        raise ConversionError(
            "the result for an image depends on the other images of its batch; keep axis 0 first and untouched "
            "(no indexing, matrix product or permutation over it)"
        )


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
