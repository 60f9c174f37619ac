"""What each form of a network answers to the images: accuracies, disagreements, confusions, and neurons whose count differs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.data.images import LabelledImages, fewer_if_larger
from nbsnn.integer.network import IntegerNetwork
from nbsnn.precision import full_float32
from nbsnn.report.intervals import wilson
from nbsnn.structure import pick_output
from nbsnn.surgery import evaluation_mode

_BATCH = 50
Tell = Callable[[str, int], None]  # a title of the current step, and the number of images done since the last call


@dataclass(eq=False)
class Answers:
    """The classes that a network chose, [N], with its logits of the same images, steps, and counts that differ by layer."""

    name: str
    classes: Tensor
    steps: Tensor | None = None
    differing: dict[str, int] = field(default_factory=dict)
    largest: dict[str, int] = field(default_factory=dict)
    neurons: dict[str, int] = field(default_factory=dict)

    def row(self, labels: Tensor, reference: Tensor | None) -> dict[str, Any]:
        """Accuracy on the first images of the labels with its 95 % interval, agreement with a reference, steps."""
        count = len(self.classes)
        hits = int((self.classes == labels[:count]).sum())
        low, high = wilson(hits, count)
        agreement = None if reference is None else 100 * float((self.classes == reference[:count]).double().mean())
        return {
            "name": self.name, "images": count, "correct": hits, "top1": 100 * hits / count, "low": low, "high": high,
            "agreement": agreement,
            "steps": None if self.steps is None else float(self.steps.double().mean()),
            "max_steps": None if self.steps is None else int(self.steps.max()),
            "off": 100 * sum(self.differing.values()) / sum(self.neurons.values()) if self.neurons else None,
        }  # fmt: skip


def _batches(images: LabelledImages) -> Iterator[Tensor]:
    size = fewer_if_larger(_BATCH, *images.shape[1:])
    for start in range(0, len(images), size):
        yield images.normalized(images.pixels(slice(start, start + size)))


@full_float32()
@torch.inference_mode()
def module_answers(name: str, network: nn.Module, images: LabelledImages, tell: Tell) -> Answers:
    """A float or quantized network's."""
    found = []
    parameter = next(network.parameters())
    with evaluation_mode(network):
        for batch in _batches(images):
            found.append(pick_output(network(batch.to(parameter)), None).argmax(1).cpu())
            tell(name, len(batch))
    return Answers(name, torch.cat(found))


def integer_answers(
    name: str, network: IntegerNetwork, images: LabelledImages, tell: Tell, *, options: dict[str, Any], compared: int = 0
) -> Answers:
    """An integer network's under these options; counts of the first images are compared with those of "counts"."""
    found, steps, done = [], [], 0
    result = Answers(name, torch.zeros(0, dtype=torch.int64))
    for batch in _batches(images):
        compare = done < compared
        outcome = network.simulate(batch, keep_counts=compare, **options)
        found.append(pick_output(outcome.logits, None).argmax(1).cpu())
        steps.append(outcome.steps.cpu())
        if compare:
            _note(result, outcome.counts, network.counts(batch), most=compared - done)
        done += len(batch)
        tell(name, len(batch))
    result.classes, result.steps = torch.cat(found), torch.cat(steps)
    return result


def _note(result: Answers, counts: dict[str, Tensor], wanted: dict[str, Tensor], *, most: int) -> None:
    for layer, count in counts.items():
        difference = (count[:most] - wanted[layer][:most]).abs()
        result.differing[layer] = result.differing.get(layer, 0) + int((difference > 0).sum())
        result.largest[layer] = max(result.largest.get(layer, 0), int(difference.max()))
        result.neurons[layer] = result.neurons.get(layer, 0) + difference.numel()


def confusion(classes: Tensor, labels: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
    """{"classes": names, "counts": rows by label, columns by answer}; of more than 20 classes the most frequent confusions."""
    labels = labels[: len(classes)]
    if len(names) <= 20:
        size = max(len(names), int(classes.max()) + 1)
        table = torch.zeros(size, size, dtype=torch.int64).index_put_(
            (labels, classes), torch.ones_like(labels), accumulate=True
        )
        return {"classes": [*names, *(f"class {n}" for n in range(len(names), size))], "counts": table.tolist(), "most": []}
    wrong = labels != classes
    pairs, number = torch.unique(torch.stack([labels[wrong], classes[wrong]]), dim=1, return_counts=True)
    order = number.argsort(descending=True)[:12]
    most = [[names[int(pairs[0, i])], names[int(pairs[1, i])], int(number[i])] for i in order]
    return {"classes": [], "counts": [], "most": most}


def disagreements(reference: Answers, others: list[Answers], images: LabelledImages, *, most: int) -> list[dict[str, Any]]:
    """Images on which a form answers otherwise than the reference: index, class, and every form's answer, by name."""
    names, labels = images.classes, images.labels
    shown = min(len(answers.classes) for answers in (reference, *others)) if others else 0
    same = torch.stack([answers.classes[:shown] == reference.classes[:shown] for answers in others]) if others else None
    found = [] if same is None else (~same.all(0)).nonzero().flatten().tolist()
    return [
        {
            "image": index, "label": _named(int(labels[index]), names),
            "answers": {answers.name: _named(int(answers.classes[index]), names) for answers in (reference, *others)},
        }
        for index in found[:most]
    ]  # fmt: skip


def _named(label: int, names: tuple[str, ...]) -> str:
    return names[label] if label < len(names) else f"class {label}"
