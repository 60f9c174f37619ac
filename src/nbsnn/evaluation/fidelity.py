"""Compare spike counts with the quantized network, neuron by neuron."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.data.images import fewer_if_larger
from nbsnn.errors import ConfigError, DataError
from nbsnn.finite import check_finite, check_logits, check_network
from nbsnn.inputs import as_images, as_labels, in_one_line, require_type, to_network
from nbsnn.integer.lower import traced
from nbsnn.integer.network import IntegerNetwork
from nbsnn.precision import full_float32
from nbsnn.quant.layers import QuantReLU
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.spiking.proxy import neurons_of
from nbsnn.spiking.schedules import schedule_named
from nbsnn.structure import pick_output
from nbsnn.surgery import shared_copy, tap
from nbsnn.tracing import tensors_in
from nbsnn.wrappers import bare, unwrap

_BATCH = 50  # images of CIFAR's size at a time: all activations are in memory


@dataclass(frozen=True)
class LayerFidelity:
    """One activation layer over all images: number of neurons, number of counts that differ, and the largest difference."""

    name: str
    neurons: int
    differing: int
    largest: int

    @property
    def off(self) -> float:
        """Share of neurons whose count differs, in percent."""
        return 100 * self.differing / max(self.neurons, 1)


@dataclass(frozen=True)
class Fidelity:
    """Result of `measure_fidelity`, per layer and in total.

    `agreement` is the share of images (and of places, if the output has places) with the same arg-max over axis 1 of the chosen
    output, in percent; `output_difference` the largest difference of any number of any output; accuracies in percent, None
    without labels;
    `steps` [images] are the steps of each image.
    """

    layers: tuple[LayerFidelity, ...]
    images: int
    agreement: float
    steps: Tensor
    quantized_top1: float | None = None
    spiking_top1: float | None = None
    output_difference: float = 0.0

    @property
    def off(self) -> float:
        """Share of all neurons whose count differs, in percent."""
        return 100 * self.differing / max(sum(layer.neurons for layer in self.layers), 1)

    @property
    def differing(self) -> int:
        """Number of neurons, over all layers and images, whose count differs."""
        return sum(layer.differing for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "layers": [asdict(layer) | {"off": layer.off} for layer in self.layers],
            "images": self.images, "agreement": self.agreement, "off": self.off, "differing": self.differing,
            "steps_mean": float(self.steps.double().mean()), "steps_max": int(self.steps.max()),
            "quantized_top1": self.quantized_top1, "spiking_top1": self.spiking_top1,
            "output_difference": self.output_difference,
        }  # fmt: skip


@checked_arguments
@full_float32()
@torch.inference_mode()
def measure_fidelity(
    quantized: nn.Module,
    spiking: SpikingNetwork,
    images: Tensor,
    *,
    labels: Tensor | None = None,
    output: str | int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Fidelity:
    """Compare every neuron's net count with its quantized activation.

    The exact schedules have a tie tolerance in their initial charge; the quantizer has the same for the comparison, so that a
    tie is rounded alike. In float64 it is 10⁻⁹ of a step, in float32 10⁻⁵.

    Args:
        quantized: the network that `spiking` was made from.
        images: [N, C, H, W], normalised; they are converted to the network's type, so float64 networks are compared in float64.
        labels: [N], for the accuracies.
        output: key or index of the logits in a network's result of several tensors; the first one unless given.
        progress: called with the number of images of each batch.
    Raises:
        ConfigError: images or labels do not fit the network, or the network or the images hold values that are not finite.
        DataError: currents or logits are not finite; names the layer.
    """
    spiking = unwrap(spiking) if isinstance(spiking, nn.Module) else spiking  # type: ignore[assignment]
    require_type(spiking, SpikingNetwork, "spiking", "the result of nbsnn.to_spiking(quantized, example)")
    quantized, images, labels = _checked(images, labels, quantized)
    _check_pair(quantized, {name: neuron.levels for name, neuron in neurons_of(spiking.network).items()}, "spiking")
    check_network(spiking.network, ConfigError, source="the spiking network")
    parameter = next(quantized.parameters())
    reference = with_ties_of(quantized, spiking)
    acts = {name: m for name, m in reference.named_modules() if isinstance(m, QuantReLU)}
    tally = {name: [0, 0, 0] for name in acts}
    outputs, steps = _Outputs(output), []
    for chunk in torch.split(images, fewer_if_larger(_BATCH, *images.shape[2:])):
        batch = chunk.to(parameter)
        with tap(acts) as wanted:
            expected = reference(batch)
        result = spiking.simulate(batch, keep_counts=True)
        steps.append(result.steps)
        for name, act in acts.items():
            if not wanted[name]:
                continue
            want = (wanted[name][0] * (act.levels / act.clip())).round()
            _note(name, tally[name], (want - result.counts[name]).abs())
        outputs.add(expected, result.logits)
        if progress:
            progress(len(chunk))
    return outputs.fidelity(tally, torch.cat(steps), labels)


@checked_arguments
@full_float32()
@torch.inference_mode()
def measure_integer_fidelity(
    quantized: nn.Module,
    network: IntegerNetwork,
    images: Tensor,
    *,
    labels: Tensor | None = None,
    output: str | int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Fidelity:
    """Compare every count of the integer network with the activation of the quantized network, simulated in floating point.

    They differ if rounding changes a tie or a near tie, and if float weights were rounded. Arguments, result and errors as
    in `measure_fidelity`; `steps` is T.
    """
    require_type(network, IntegerNetwork, "network", "the result of nbsnn.lower(quantized, example)")
    quantized, images, labels = _checked(images, labels, quantized)
    _check_pair(quantized, {unit.name: unit.levels for unit in network.program.units}, "network")
    parameter = next(quantized.parameters())
    reference = shared_copy(quantized).eval()
    acts = {name: m for name, m in reference.named_modules() if isinstance(m, QuantReLU)}
    tally = {unit.name: [0, 0, 0] for unit in network.program.units}
    firings = {firing.name: firing for firing in traced(quantized, images[:1]).firings}
    outputs = _Outputs(output)
    for chunk in torch.split(images, fewer_if_larger(_BATCH, *images.shape[2:])):
        with tap({name: acts[name] for name in tally}) as wanted:
            expected = reference(chunk.to(parameter))
        result = network.simulate(chunk, keep_counts=True, **network.options)
        for name, entry in tally.items():
            want = (wanted[name][0] * (acts[name].levels / acts[name].clip())).round()
            count = result.counts[name].cpu()
            _note(name, entry, (firings[name].ordered(want.cpu()) - count).abs())
        outputs.add(expected, result.logits)
        if progress:
            progress(len(chunk))
    return outputs.fidelity(tally, torch.full((len(images),), network.timesteps), labels)


def _checked(images: Tensor, labels: Tensor | None, quantized: nn.Module) -> tuple[nn.Module, Tensor, Tensor | None]:
    """The quantized network without wrappers, images and labels."""
    require_type(quantized, nn.Module, "quantized", "the result of nbsnn.quantize")
    quantized = bare(quantized)
    check_network(quantized, ConfigError)
    checked = as_images(images, network=quantized, finite=True)
    with in_one_line(checked):
        shared_copy(quantized).eval()(to_network(checked[:1], quantized))
    return quantized, checked, None if labels is None else as_labels(labels, count=len(checked))


def _check_pair(quantized: nn.Module, levels: Mapping[str, int], other: str) -> None:
    """Refuse a network whose activations are not those with these levels: nothing would be compared, or other units."""
    own = {name: module.levels for name, module in quantized.named_modules() if isinstance(module, QuantReLU)}
    if not own:
        raise ConfigError("quantized has no quantized activation; give the result of nbsnn.quantize")
    for name, count in levels.items():
        if own.get(name) != count:
            found = f"{own[name]} levels" if name in own else "no activation"
            raise ConfigError(f"{other} was made from another network: {name} has {count} levels, and {found} in quantized; "
                              "give the one that it was made from")  # fmt: skip


def _note(name: str, entry: list[int], difference: Tensor) -> None:
    check_finite(f"the current of {name}", difference, DataError, remedy="compare in float64, or look for a division by 0")
    entry[0] += difference.numel()
    entry[1] += int((difference > 0).sum())
    entry[2] = max(entry[2], int(difference.max()))


class _Outputs:
    """What both networks return, batch by batch: the chosen logits, and the largest difference of all numbers."""

    def __init__(self, output: str | int | None) -> None:
        self.output, self.largest = output, 0.0
        self.expected: list[Tensor] = []
        self.actual: list[Tensor] = []

    def add(self, expected: Any, actual: Any) -> None:
        """Compare a batch."""
        for name, result, kept in (("quantized", expected, self.expected), ("spiking", actual, self.actual)):
            for tensor in tensors_in(result):
                check_logits(tensor, DataError, name=f"logits of the {name} network")
            kept.append(pick_output(result, self.output).cpu())
        for first, second in zip(tensors_in(expected), tensors_in(actual), strict=True):
            self.largest = max(self.largest, float((first.cpu().double() - second.cpu().double()).abs().max()))

    def fidelity(self, tally: dict[str, list[int]], steps: Tensor, labels: Tensor | None) -> Fidelity:
        """The result, from a tally per layer."""
        first, second = torch.cat(self.expected).argmax(1), torch.cat(self.actual).argmax(1)
        if labels is not None and first.dim() > 1:
            raise ConfigError(
                "labels are classes of images, and the output has places; leave them out, or choose another output"
            )
        return Fidelity(
            layers=tuple(LayerFidelity(name, *entry) for name, entry in tally.items()),
            images=len(first),
            agreement=_percent(first == second),
            steps=steps,
            quantized_top1=None if labels is None else _percent(first == labels.to(first.device)),
            spiking_top1=None if labels is None else _percent(second == labels.to(first.device)),
            output_difference=self.largest,
        )


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.double().mean())


def with_ties_of(quantized: nn.Module, spiking: SpikingNetwork) -> nn.Module:
    """A copy of the quantized network that shares its tensors and rounds ties like the neurons of `spiking`."""
    tolerance = schedule_named(spiking.schedule).tie_tolerance(next(quantized.parameters()).dtype)
    copied = shared_copy(quantized).eval()
    for act in copied.modules():
        if isinstance(act, QuantReLU):
            act.tie_tolerance = tolerance
    return copied
