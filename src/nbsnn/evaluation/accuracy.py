"""Accuracy of any form on labelled batches."""

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.distributed import max_over_ranks, sum_over_ranks
from nbsnn.errors import ConfigError, DataError
from nbsnn.finite import check_images, check_logits, check_network
from nbsnn.inputs import as_batches, as_labels, in_one_line, require_type, to_network
from nbsnn.integer.network import IntegerNetwork
from nbsnn.precision import full_float32
from nbsnn.quant.counted import convolutions_of_counts
from nbsnn.quant.layers import QuantConv2d, QuantReLU, WeightQuantizer, quantized_once
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.structure import pick_output
from nbsnn.surgery import evaluation_mode
from nbsnn.wrappers import unwrap


@dataclass(frozen=True)
class Report:
    """Result of `evaluate`. `top1`, `top5` in percent; `steps` and `max_steps` are of a spiking or integer network."""

    images: int
    top1: float
    top5: float
    seconds: float
    steps: float | None = None
    max_steps: int | None = None

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"images_per_second": self.images_per_second}


@checked_arguments
@full_float32()
@torch.inference_mode()
def evaluate(
    model: nn.Module | IntegerNetwork,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    output: str | int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Top-1 and top-5 of a network over a loader, in evaluation mode and full float32; the mode is restored.

    Under torchrun each process passes its share of the images, which must not be empty, and gets the result for all images.

    Args:
        model: float, quantized, spiking, or an integer network (`network.using(engine="spikes", ...)` sets its options).
        loader: batches (images [B, C, H, W], labels [B]).
        output: key or index of the logits [B, classes] in a network's result of several tensors; the first one unless given.
        progress: called with the number of images of each batch.
    Raises:
        ConfigError: not batches of images and labels, a label without a class of the network, or values in the network that are
            not finite.
        DataError: images or logits are not finite, or there is no batch.
    """
    from torchmetrics.classification import MulticlassAccuracy  # here: it takes as long to import as all of nbsnn

    require_type(model, (nn.Module, IntegerNetwork), "model", "a network: float, quantized, spiking or integer")
    if not isinstance(model, IntegerNetwork):
        bare = unwrap(model)
        check_network(bare.network if isinstance(bare, SpikingNetwork) else bare, ConfigError)
        model = bare if isinstance(bare, SpikingNetwork) else model  # other wrapped networks may be faster
    top1 = top5 = fault = None
    steps: list[Tensor] = []
    images_seen, start = 0, time.perf_counter()
    modules = [] if isinstance(model, IntegerNetwork) else [model]
    counting = _takes_counts(model)
    call = _ChannelsLast(model) if counting else model
    with evaluation_mode(*modules), quantized_once(*modules), convolutions_of_counts() if counting else nullcontext():
        batches = as_batches(loader, network=None if isinstance(model, IntegerNetwork) else model)
        for number, (images, given) in enumerate(batches, start=1):
            try:
                logits = _logits(model, call, images, f"of batch {number}", output)
            except DataError as error:
                fault = error
                break
            device = logits.device
            labels = as_labels(given, "labels of the loader", count=len(images), classes=logits.shape[1]).to(device)
            if top1 is None or top5 is None:
                classes = logits.shape[1]
                top1 = MulticlassAccuracy(classes, average="micro", validate_args=False).to(device)
                top5 = MulticlassAccuracy(classes, top_k=min(5, classes), average="micro", validate_args=False).to(device)
            top1.update(logits, labels)
            top5.update(logits, labels)
            if isinstance(model, (SpikingNetwork, IntegerNetwork)):
                steps.append(model.steps)
            images_seen += len(images)
            if progress:
                progress(len(images))
    # All processes check this together; otherwise some would wait forever.
    total, empty, broken = sum_over_ranks(torch.tensor([images_seen, top1 is None, fault is not None])).tolist()
    if fault:
        raise fault
    if broken:
        raise DataError("evaluate: another process found values that are not finite; see its message")
    if empty or top1 is None or top5 is None:
        raise DataError("evaluate: the loader gave no batch; choose a split that holds an image for each process")
    taken = _steps_taken(torch.cat(steps).double()) if steps else None
    return Report(
        images=total,
        top1=round(100 * float(top1.compute()), 4),
        top5=round(100 * float(top5.compute()), 4),
        seconds=time.perf_counter() - start,
        steps=taken and taken[0],
        max_steps=taken and int(taken[1]),
    )


def _takes_counts(model: nn.Module | IntegerNetwork) -> bool:
    """Whether convolutions may run in 8-bit integers: a quantized network of 2 bits, edge layers aside, bare and on a CPU.

    Its sums are few different numbers, of which hardly one is so near a tie that rounding in float32 decides. With 4 bits,
    exact sums change the class of 17 of CIFAR-10's 10,000 test images.
    """
    if isinstance(model, (IntegerNetwork, SpikingNetwork)) or unwrap(model) is not model:
        return False
    modules = list(model.modules())
    weights = [module for module in modules if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))]
    small = all(
        isinstance(layer, WeightQuantizer) and layer.weight.is_cpu and (layer.format.edge or layer.weight_bits == 2)
        for layer in weights
    )
    convolutions = any(isinstance(layer, QuantConv2d) for layer in weights)
    return small and convolutions and all(act.bits == 2 for act in modules if isinstance(act, QuantReLU))


class _ChannelsLast:
    """Calls a network with images channels last, as integer convolutions take them; as given, once that has failed."""

    def __init__(self, network: nn.Module | IntegerNetwork) -> None:
        self.network, self.fits = network, True

    def __call__(self, images: Tensor) -> Any:
        if self.fits and images.dim() == 4:
            _, channels, height, width = images.shape
            last = images.contiguous(memory_format=torch.channels_last)
            strides = (channels * height * width, 1, channels * width, channels)  # these show the layout of one channel too
            try:
                return self.network(last.as_strided(last.shape, strides))
            except RuntimeError:  # its forward may call view(), which takes the given layout only
                self.fits = False
        return self.network(images)


def _logits(
    model: nn.Module | IntegerNetwork, call: Callable[[Tensor], Any], images: Tensor, batch: str, output: str | int | None
) -> Tensor:
    """[B, classes], by `call`; `batch` is for the message if images or logits are not finite, a DataError."""
    module = None if isinstance(model, IntegerNetwork) else model
    if module is not None:  # an integer network takes images unchanged, also 8-bit pixels
        images = to_network(images, module)
    check_images(images, DataError, name=f"images {batch}")
    with in_one_line(images):
        logits = pick_output(call(images), output)
    if logits.dim() != 2:
        raise ConfigError(
            f"the network returns {list(logits.shape)}; evaluate takes logits [B, classes], which output= chooses"
        )
    check_logits(logits, DataError, name=f"logits {batch}", network=module, images=images)
    return logits


def _steps_taken(steps: Tensor) -> tuple[float, float]:
    """Mean and maximum over the images of all processes."""
    total, count = sum_over_ranks(torch.stack([steps.sum(), torch.ones_like(steps).sum()]).cpu()).tolist()
    return total / count, float(max_over_ranks(steps.max().cpu()))
