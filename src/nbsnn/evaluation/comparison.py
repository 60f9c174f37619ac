"""Compare quantized networks with their spiking forms: accuracy of both, and neurons whose counts differ."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import nn

from nbsnn.data.images import LabelledImages, evaluation_batches
from nbsnn.distributed import world
from nbsnn.evaluation.accuracy import evaluate
from nbsnn.evaluation.engines import SIMULATED_AT_A_TIME, integer_or_reason, measured
from nbsnn.evaluation.fidelity import Fidelity, measure_fidelity, with_ties_of
from nbsnn.integer.network import IntegerNetwork
from nbsnn.progress import ImageProgress
from nbsnn.spiking.convert import to_spiking
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.spiking.schedules import schedule_named, valid_pairs

FIDELITY_IMAGES = 200


@dataclass(frozen=True)
class Comparison:
    """A quantized network compared with one of its spiking forms. Accuracies in percent; `steps` are means over the images.

    Both round ties alike, as in `measure_fidelity`.

    Accuracies are of all images, computed by `engine`: "integer, native", or "float simulation: " and why, in the network's own
    type. `off` is the share of neurons whose count differs, in percent, on `fidelity.images` images, always simulated in
    floating point: in float64 for the exact schedules.
    """

    bits: int
    timesteps: int
    neuron: str
    schedule: str
    quantized_top1: float
    spiking_top1: float
    off: float
    steps: float
    max_steps: int
    seconds: float
    images: int
    engine: str
    fidelity: Fidelity

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {key: value for key, value in asdict(self).items() if key != "fidelity"}
        return values | {"fidelity": self.fidelity.to_dict()}


def compare(
    quantized: nn.Module,
    images: LabelledImages,
    *,
    pairs: Iterable[tuple[str, str]] | None = None,
    fidelity_images: int = FIDELITY_IMAGES,
    output: str | int | None = None,
    at_a_time: int | None = None,
    progress: ImageProgress | None = None,
) -> Iterator[Comparison]:
    """Convert with each pair of neuron and schedule, and measure accuracy and fidelity.

    Under torchrun the processes share the images; for fidelity each uses the same ones.

    Args:
        quantized: result of `quantize`, on any device.
        images: the images to look at.
        pairs: (neuron, schedule) pairs; all unless given.
        fidelity_images: number of images, from the first on, that are compared neuron by neuron.
        output: key or index of the logits in a network's result of several tensors; the first one unless given.
        at_a_time: batch size of the simulation in floating point; depends on the image size unless given.
        progress: called with the pair's name and the number of images done.
    """
    sample, integer = images.some(fidelity_images), integer_or_reason(quantized, images)
    counted: float | None = None  # the integer network's, the same for all pairs
    for neuron, schedule in valid_pairs() if pairs is None else pairs:
        spiking = spiking_form(quantized, images, neuron=neuron, schedule=schedule)
        tell = partial(progress, f"{neuron} {schedule}") if progress else None
        way = measured(spiking, integer, neuron=spiking.neuron, schedule=schedule)
        if not isinstance(way.network, IntegerNetwork):
            reference = evaluate(
                with_ties_of(quantized, spiking), evaluation_batches(images, world=world()), output=output
            ).top1
        else:
            if counted is None:
                counting = way.network.using(engine="counts")
                counted = evaluate(counting, way.batches(images, world=world()), output=output).top1
            reference = counted
        batches = way.batches(images, at_a_time=at_a_time, world=world())
        report = evaluate(way.network, batches, output=output, progress=tell)
        exact = schedule_named(schedule).exact
        first, second = (copy.deepcopy(quantized).double(), copy.deepcopy(spiking).double()) if exact else (quantized, spiking)
        given = sample.normalized()
        fidelity = measure_fidelity(first, second, given, labels=sample.labels, output=output, progress=tell)
        yield Comparison(
            bits=(spiking.timesteps + 1).bit_length() - 1, timesteps=spiking.timesteps, neuron=neuron, schedule=schedule,
            quantized_top1=reference, spiking_top1=report.top1, off=fidelity.off, steps=report.steps or 0.0,
            max_steps=report.max_steps or 0, seconds=report.seconds, images=report.images, engine=way.engine, fidelity=fidelity,
        )  # fmt: skip


def spiking_form(quantized: nn.Module, images: LabelledImages, *, neuron: str | None, schedule: str) -> SpikingNetwork:
    """`to_spiking` with the set's first image as the example."""
    parameter = next(quantized.parameters())
    example = images.normalized(images.pixels(slice(0, 1))).to(parameter)
    return to_spiking(quantized, example, neuron=neuron, schedule=schedule)


@dataclass(frozen=True)
class Finetuned:
    """A quantized network, its spiking form under "fixed", and that form fine-tuned. Accuracies in percent."""

    images: int
    timesteps: int
    neuron: str
    quantized_top1: float
    before_top1: float
    after_top1: float


def compare_finetuned(
    quantized: nn.Module, spiking: SpikingNetwork, images: LabelledImages, *, progress: ImageProgress | None = None
) -> Finetuned:
    """Accuracy of a quantized network, of its spiking form, and of the fine-tuned spiking form.

    Args:
        quantized: the source of fine-tuning.
        spiking: result of fine-tuning; under the schedule "fixed".
        images: the images to look at.
        progress: called with a title and the number of images done.
    """
    before = spiking_form(quantized, images, neuron=spiking.neuron, schedule=spiking.schedule)
    top1 = {}
    for name, network in (("quantized", quantized), ("spiking before", before), ("spiking after", spiking)):

        def tell(count: int, name: str = name) -> None:
            if progress:
                progress(name, count)

        top1[name] = evaluate(network, evaluation_batches(images, at_a_time=SIMULATED_AT_A_TIME), progress=tell).top1
    return Finetuned(len(images), spiking.timesteps, spiking.neuron, *top1.values())
