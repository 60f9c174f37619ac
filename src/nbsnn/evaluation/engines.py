"""What measures the accuracy of a spiking network: its integer form where the native backend runs it, else the simulation in
floating point, several times slower. Where both exist they fire the same spikes but for rounding."""

from dataclasses import dataclass

import torch
from torch import nn

from nbsnn.data.images import Batches, LabelledImages, evaluation_batches
from nbsnn.distributed import World
from nbsnn.errors import NbsnnError
from nbsnn.integer.backends import library
from nbsnn.integer.frozen import thawed
from nbsnn.integer.lower import lower
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.pixels import pixel_table

SIMULATED_AT_A_TIME = 100  # images of CIFAR's size; time multiplies them by T
INTEGER_AT_A_TIME = 500


@dataclass(frozen=True)
class Measured:
    """A network to evaluate.

    Attributes:
        network: an integer network with its options, or the spiking network itself.
        engine: for the reader: "integer, native", or "float simulation: " and the reason.
    """

    network: nn.Module | IntegerNetwork
    engine: str

    def batches(self, images: LabelledImages, *, at_a_time: int | None = None, world: World | None = None) -> Batches:
        """The images in order; for integer networks their pixels, in larger batches unless `at_a_time` says how many."""
        group = world or World()
        if isinstance(self.network, IntegerNetwork):
            pixels = takes_pixels_of(self.network, images)
            return evaluation_batches(images, at_a_time=INTEGER_AT_A_TIME, world=group, pixels=pixels)
        if at_a_time is not None:
            return Batches(images, at_a_time, world=group)
        return evaluation_batches(images, at_a_time=SIMULATED_AT_A_TIME, world=group)


def takes_pixels_of(network: nn.Module | IntegerNetwork, images: LabelledImages) -> bool:
    """Whether a network takes a set's 8-bit pixels: an integer one lowered with the set's mean and std."""
    if not isinstance(network, IntegerNetwork) or network.program.pixels.table is None:
        return False
    grid = network.program.pixels
    return torch.equal(thawed(grid.table).cpu(), pixel_table(images.mean, images.std, grid.fraction_bits))


def integer_or_reason(quantized: nn.Module, images: LabelledImages) -> IntegerNetwork | str:
    """The integer form of a quantized network for 8-bit pixels of this set, or in one line why there is none to measure.

    Args:
        quantized: as in `lower`.
        images: the first one is the example; their mean and std are those of the pixels.
    """
    parameter = next(quantized.parameters())
    if parameter.device.type != "cpu":
        return f"the network is on {parameter.device}"
    if (obstacle := library.why_not()) is not None:
        return obstacle
    example = images.normalized(images.pixels(slice(0, 1))).to(parameter)
    try:
        return lower(quantized, example, mean=images.mean, std=images.std)
    except NbsnnError as error:
        return str(error)


def measured(spiking: nn.Module, integer: IntegerNetwork | str, *, neuron: str, schedule: str) -> Measured:
    """What to evaluate for a spiking network, given the result of `integer_or_reason` for its quantized form."""
    if isinstance(integer, str):
        return Measured(spiking, f"float simulation: {integer}")
    network = integer.using(engine="spikes", neuron=neuron, schedule=schedule)
    if network.backend != "native":
        return Measured(spiking, f"float simulation: the native backend has no {neuron} neurons under schedule={schedule!r}")
    return Measured(network, "integer, native")
