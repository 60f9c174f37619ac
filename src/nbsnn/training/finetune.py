"""Fine-tuning for the schedule "fixed": improve the *spiking* accuracy of a network, at the cost of its quantized form.

There are three methods. Their changes are kept only if the spiking accuracy on held-out training images rises:

* "layerwise", as published with NB-SNN (Hu et al., 2023): unit by unit, from the second to the last but one, train the spiking
  rate towards the activation of the teacher, which is the original quantized network.
* "end-to-end": train all units together towards the labels and the teacher's logits; by default only norms and biases.
* "calibrate": without training, shift biases to minimize the error of the rates against the teacher's activations.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.data.images import Batches, LabelledImages, require_set
from nbsnn.errors import ConfigError, DivergedError
from nbsnn.evaluation.accuracy import evaluate
from nbsnn.progress import ImageProgress
from nbsnn.quant.layers import QuantReLU
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.training.bias_shift import shift_biases_
from nbsnn.training.finetune_spec import START, Change, FinetuneSpec, check_source
from nbsnn.training.loss import distillation_loss
from nbsnn.training.optim import keep_positive_
from nbsnn.training.proxy import SpikingProxy, activation_of, channels_last_copy, find_units
from nbsnn.wrappers import bare

_CHECK_BATCH = 50  # images


@dataclass(frozen=True)
class FinetuneResult:
    """The fine-tuned network, in spiking form, and its changes. Accuracies in percent on the held-out images."""

    spiking: SpikingNetwork
    quantized_top1: float
    before_top1: float
    after_top1: float
    seconds: float
    changes: tuple[Change, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {key: getattr(self, key) for key in ("quantized_top1", "before_top1", "after_top1", "seconds")}
        return values | {"changes": [asdict(change) for change in self.changes]}


@checked_arguments
def finetune(
    quantized: nn.Module,
    train: LabelledImages,
    held_out: LabelledImages,
    spec: FinetuneSpec | None = None,
    *,
    progress: ImageProgress | None = None,
    on_change: Callable[[Change, SpikingNetwork], None] | None = None,
) -> FinetuneResult:
    """Fine-tune a quantized network for its spiking form under the schedule "fixed".

    Args:
        quantized: result of `nbsnn.quantize`, trained; it is the teacher, and is not changed. The weights of a packed network
            are fixed and not trained.
        train: training images.
        held_out: training images, not in `train`, that determine which changes are kept.
        spec: method and settings.
        progress: called with a title of the current step and a number of images; `images_to_see` gives the total.
        on_change: called at the start and after each change with the current network, before a change that is not kept is
            undone; after a kept change the network has all changes kept so far.
    Returns:
        The spiking network with the kept changes.
    Raises:
        ConfigError: too few images; the network is not quantized, is packed while `spec` trains weights, or has a unit without
            a trainable parameter.
        ConversionError: it has no spiking form.
        DivergedError: the learning rate is too high.
    """
    spec = spec or FinetuneSpec()
    require_set(train, "finetune: train")
    require_set(held_out, "finetune: held_out")
    quantized = bare(quantized) if isinstance(quantized, nn.Module) else quantized
    check_source(quantized, spec)
    if not len(train) or not len(held_out):
        raise ConfigError(f"finetune: {len(train)} images to learn from and {len(held_out)} held out; both must be given")
    if spec.method != "calibrate" and len(train) < 2:
        raise ConfigError("finetune: 1 image to learn from; batches of two or more are needed")
    start = time.perf_counter()
    run = _Finetuning(quantized, train, held_out, spec, progress or (lambda _what, _count: None), on_change)
    reference = evaluate(run.teacher, Batches(run.held_out, _CHECK_BATCH)).top1
    before = run.top1 = run.check("spiking before")
    run.tell(Change(START, None, before, True, time.perf_counter() - start))
    {"layerwise": run.layerwise_, "end-to-end": run.end_to_end_, "calibrate": run.calibrate_}[spec.method]()
    run.pair.release_()
    seconds = time.perf_counter() - start
    return FinetuneResult(run.pair.spiking, reference, before, run.top1, seconds, tuple(run.changes))


def images_to_see(quantized: nn.Module, train: LabelledImages, held_out: LabelledImages, spec: FinetuneSpec) -> int:
    """The total number of images passed to `progress`."""
    units = sum(isinstance(module, QuantReLU) for module in quantized.modules()) - 1
    calibration = units * min(len(train), spec.calibration_images) + len(held_out)
    training = spec.epochs * len(train)
    if spec.method == "layerwise":
        return len(held_out) + units * (training + len(held_out))
    if spec.method == "end-to-end":
        return len(held_out) + training + spec.epochs * len(held_out) + calibration * spec.calibrate_first
    return len(held_out) + calibration


@dataclass
class _Finetuning:
    quantized: nn.Module
    train: LabelledImages
    held_out: LabelledImages
    spec: FinetuneSpec
    progress: ImageProgress
    on_change: Callable[[Change, SpikingNetwork], None] | None
    changes: list[Change] = field(default_factory=list)
    top1: float = 0.0  # on the held-out images, of the changes kept so far

    def __post_init__(self) -> None:
        parameter = next(self.quantized.parameters())
        self.like = parameter
        self.train, self.held_out = self.train.to(parameter.device), self.held_out.to(parameter.device)
        self.teacher = channels_last_copy(self.quantized)
        example = self.prepare(self.train.normalized(self.train.pixels(slice(0, 1))))
        self.pair = SpikingProxy(self.quantized, example, neuron=self.spec.neuron)
        self.units = find_units(self.pair, example)
        if not self.spec.trains_weights and self.spec.method != "calibrate":
            self.pair.freeze_weights_()
            self.check_units()

    def check_units(self) -> None:
        """Raise an error, before training, for units without a trainable parameter besides frozen weights."""
        named = {unit.name: list(unit.parameters.values()) for unit in self.units[1:] if unit.name}
        groups = named if self.spec.method == "layerwise" else {"the network": self.pair.network.parameters()}
        for name, parameters in groups.items():
            if not any(p.requires_grad for p in parameters):
                raise ConfigError(f"{name} has no norm and no bias to train; train weights too (weights=True)")

    def prepare(self, images: Tensor) -> Tensor:
        return images.to(self.like).contiguous(memory_format=torch.channels_last)

    def batches(self, epoch: int) -> Batches:
        spec = self.spec
        return Batches(self.train, spec.batch_size, shuffle=True, augment=spec.augment, seed=spec.seed, epoch=epoch)

    def check(self, what: str) -> float:
        loader = Batches(self.held_out, _CHECK_BATCH)
        return evaluate(self.pair.spiking, loader, progress=lambda count: self.progress(what, count)).top1

    def judge_(self, name: str, before: Mapping[str, Tensor], loss: float | None, start: float) -> bool:
        """Keep a change if the held-out accuracy rose; otherwise restore `before`."""
        top1 = self.check(name)
        kept = self.spec.force or top1 > self.top1
        self.changes.append(Change(name, loss, top1, kept, time.perf_counter() - start))
        self.tell(self.changes[-1])
        if kept:
            self.top1 = top1
        else:
            self.pair.network.load_state_dict(dict(before))
        return kept

    def tell(self, change: Change) -> None:
        if self.on_change:
            self.on_change(change, self.pair.spiking)

    def snapshot(self) -> dict[str, Tensor]:
        return {key: tensor.clone() for key, tensor in self.pair.network.state_dict().items()}

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
        spec, chosen = self.spec, [p for p in parameters if p.requires_grad]
        return torch.optim.SGD(chosen, lr=spec.rate, momentum=spec.momentum, weight_decay=spec.weight_decay)

    # ------------------------------------------------------------------------------------------------ the methods

    def calibrate_(self) -> None:
        start, before = time.perf_counter(), self.snapshot()
        step = max(1, len(self.train) // self.spec.calibration_images)
        chosen = torch.arange(0, len(self.train), step)[: self.spec.calibration_images]
        images = self.prepare(self.train.normalized(self.train.pixels(chosen)))
        shift_biases_(self.pair, self.teacher, images, self.units, progress=self.progress)
        self.judge_("biases", before, None, start)

    def layerwise_(self) -> None:
        modules = dict(self.teacher.named_modules())
        for index, unit in enumerate(unit for unit in self.units[1:] if unit.name):  # the head has no spikes to match
            start, before = time.perf_counter(), self.snapshot()
            optimizer, losses = self.optimizer(unit.parameters.values()), []
            for epoch in range(self.spec.epochs):
                for pixels, _ in self.batches(index * self.spec.epochs + epoch):
                    images = self.prepare(pixels)
                    with torch.no_grad():
                        target = activation_of(self.teacher, modules[unit.name], images)
                    loss = F.mse_loss(self.pair.activation(images, unit.name), target)
                    losses.append(self.step_(optimizer, loss, len(images), unit.name))
            self.judge_(unit.name, before, _mean(losses), start)

    def end_to_end_(self) -> None:
        if self.spec.calibrate_first:
            self.calibrate_()
        spec, step = self.spec, 0
        optimizer = self.optimizer(self.pair.network.parameters())
        total = spec.epochs * len(self.batches(0))
        best = self.snapshot()
        for epoch in range(spec.epochs):
            start, losses, name = time.perf_counter(), [], f"epoch {epoch + 1}"
            for pixels, labels in self.batches(epoch):
                images = self.prepare(pixels)
                for group in optimizer.param_groups:
                    group["lr"] = spec.rate * 0.5 * (1 + math.cos(math.pi * step / total))
                loss = self.loss(self.pair.spiking(images), images, labels)
                losses.append(self.step_(optimizer, loss, len(images), name))
                step += 1
            now = self.snapshot()
            best = now if self.judge_(name, now, _mean(losses), start) else best  # training continues from here in both cases
        self.pair.network.load_state_dict(best)

    def loss(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch in end-to-end fine-tuning."""
        if not self.spec.share:
            return F.cross_entropy(logits, labels)
        with torch.no_grad():
            answer = self.teacher(images)
        return distillation_loss(logits, answer, labels, share=self.spec.share, temperature=self.spec.temperature)

    def step_(self, optimizer: torch.optim.SGD, loss: Tensor, images: int, what: str) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        keep_positive_(self.pair.network)
        if not all(bool(p.isfinite().all()) for p in self.pair.network.parameters()):
            raise DivergedError(f"parameters are no longer finite at {what} of {self.spec.method}; lower lr={self.spec.rate:g}")
        self.progress(what, images)
        return float(loss.detach())


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)
