"""Measure everything that a report shows, as plain values for JSON."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nbsnn.data.images import LabelledImages
from nbsnn.errors import ConfigError, NbsnnError
from nbsnn.integer.lower import lower
from nbsnn.integer.network import IntegerNetwork
from nbsnn.quant.layers import QuantReLU
from nbsnn.recipe import FLOAT_BITS
from nbsnn.report.answers import Answers, Tell, confusion, disagreements, integer_answers, module_answers
from nbsnn.report.drawing import picture
from nbsnn.report.facts import data_facts, network_facts, speeds_of, weights_of
from nbsnn.report.layers import LayersInTime
from nbsnn.report.limits import Pairs, ReportLimits, pair_title
from nbsnn.report.subjects import RunPhase, Subject, example_for
from nbsnn.spiking.schedules import valid_pairs
from nbsnn.summary import system_facts

_SHOWN = 12  # images on which forms disagree


def measure_report(
    subject: Subject,
    images: LabelledImages | None,
    *,
    data: str | None = None,
    command: str | None = None,
    pairs: Iterable[tuple[str, str]] | None = None,
    limits: ReportLimits | None = None,
    brief: bool = False,
    tell: Tell = lambda what, count: None,
) -> dict[str, Any]:
    """Everything that a report shows; parts that cannot be measured are None, and `missing` says why.

    Args:
        subject: as `subject_of` gives it.
        images: test images; None if there are none.
        data: name of the data set.
        command: that repeats the report.
        pairs: (neuron, schedule) to run; all unless given.
        limits: how many images.
        brief: leave out layers, raster, energy and speed.
        tell: called with the title of the current step and the number of images done since the last call.
    """
    limits = limits or ReportLimits()
    chosen = tuple(valid_pairs() if pairs is None else pairs)
    missing = list(subject.missing)
    header = subject.header
    network = _integer_form(subject, images, missing)
    fits = images is not None and _images_fit(subject, network, images, missing)
    if images is None:
        missing.append("accuracies, activity, energy and speed: no images were given")
    test = images if fits else None
    report: dict[str, Any] = {
        "kind": "report", "title": subject.title, "command": command, "machine": system_facts(),
        "network": network_facts(subject, network), "data": data_facts(test, data, limits),
        "phases": [_curve(phase) for phase in subject.phases],
        "recipe": header.get("recipe"), "recipe_hash": header.get("recipe_hash"), "seed": header.get("seed"),
        "versions": header.get("versions"), "metrics": header.get("metrics") or {},
    }  # fmt: skip
    measured = None if test is None else _answers(subject, network, test, chosen, limits, tell)
    report |= _accuracies(measured, test, _SHOWN)
    report["by_timesteps"] = None if brief else _by_timesteps(subject, test, chosen, limits, tell, measured)
    layers = None if network is None or test is None or brief else LayersInTime(network, test, chosen, limits, tell)
    report["layers"] = layers and layers.rows(measured)
    report["raster"] = layers and layers.rasters()
    report["energy"] = layers and layers.energies()
    report["speed"] = None if test is None or brief else speeds_of(subject, network, test, chosen, limits, tell)
    report["weights"] = network and weights_of(network, subject.quantized)
    return report | {"missing": missing}


def _integer_form(subject: Subject, images: LabelledImages | None, missing: list[str]) -> IntegerNetwork | None:
    if subject.integer is not None or subject.quantized is None:
        return subject.integer
    try:
        if images is None:
            return lower(subject.quantized, example_for(subject))
        return lower(subject.quantized, images.normalized(images.pixels(slice(0, 1))), mean=images.mean, std=images.std)
    except NbsnnError as error:
        missing.append(f"the integer network, spikes and energy: {error}")
        return None


def _images_fit(subject: Subject, network: IntegerNetwork | None, images: LabelledImages, missing: list[str]) -> bool:
    """Whether the images run through the forms at hand and give classes."""
    first = images.normalized(images.pixels(slice(0, 2)))
    try:
        if network is not None:
            logits = network.run(first)
        else:
            module = subject.quantized if subject.quantized is not None else subject.float_net
            if module is None:
                raise ConfigError("there is no network to run")
            with torch.no_grad():
                logits = module.eval()(first.to(next(module.parameters())))
    except (NbsnnError, RuntimeError) as error:
        missing.append(f"accuracies, activity, energy and speed: the images do not run: {str(error).splitlines()[0]}")
        return False
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        missing.append("accuracies, activity, energy and speed: the network does not return logits [B, classes]")
        return False
    return True


def _curve(phase: RunPhase) -> dict[str, Any]:
    return {"bits": phase.bits, "finished": phase.finished, "log": phase.log}


def _spiking_answers(
    network: IntegerNetwork, images: LabelledImages, pairs: Iterable[tuple[str, str]], limits: ReportLimits, tell: Tell
) -> list[Answers]:
    stepped, compared = images.some(limits.stepped), max(limits.traced, limits.counted)
    found = []
    for pair in pairs:
        options = {"engine": "spikes", "neuron": pair[0], "schedule": pair[1]}
        found.append(integer_answers(pair_title(pair), network, stepped, tell, options=options, compared=compared))
    return found


def _answers(
    subject: Subject,
    network: IntegerNetwork | None,
    test: LabelledImages,
    pairs: Pairs,
    limits: ReportLimits,
    tell: Tell,
) -> dict[str, Answers]:
    """Form → its answers: float, quantized, integer, and each neuron and schedule."""
    found: list[Answers] = []
    if subject.float_net is not None:
        found.append(module_answers("float", subject.float_net, test, tell))
    if subject.quantized is not None:
        found.append(module_answers("quantized", subject.quantized, test, tell))
    if network is not None:
        found.append(integer_answers("integer", network, test, tell, options={"engine": "counts"}))
        found += _spiking_answers(network, test, pairs, limits, tell)
    return {answers.name: answers for answers in found}


def _accuracies(measured: dict[str, Answers] | None, test: LabelledImages | None, shown: int) -> dict[str, Any]:
    if not measured or test is None:
        return {"accuracy": None, "disagreements": None, "confusion": None}
    labels = test.labels.cpu()
    reference = measured.get("integer") or measured.get("quantized")
    spiking = [answers for name, answers in measured.items() if name not in ("float", "quantized", "integer")]
    last = reference or measured["float"]
    rows = [answers.row(labels, None if reference is None else reference.classes) for answers in measured.values()]
    differing = disagreements(reference, spiking, test, most=shown) if reference and spiking else None
    for entry in differing or ():
        entry["picture"] = picture(test.pixels(torch.tensor([entry["image"]]))[0])
    return {"accuracy": rows, "disagreements": differing, "confusion": confusion(last.classes, labels, test.classes)}


def _by_timesteps(
    subject: Subject,
    test: LabelledImages | None,
    pairs: Pairs,
    limits: ReportLimits,
    tell: Tell,
    measured: dict[str, Answers] | None,
) -> list[dict[str, Any]] | None:
    """For each phase of a run with a network: T, and the accuracies of its forms on the same images."""
    if test is None:
        return None
    rows: list[dict[str, Any]] = []
    few, labels = test.some(limits.stepped), test.labels.cpu()
    for phase in subject.phases:
        if phase.network is None:
            continue
        if phase.network is subject.quantized and measured:
            found = list(measured.values())
        elif phase.bits == FLOAT_BITS:
            found = [module_answers("float", phase.network, few, tell)]
        else:
            found = [module_answers("quantized", phase.network, few, tell)]
            network = lower(phase.network, few.normalized(few.pixels(slice(0, 1))), mean=few.mean, std=few.std)
            found += _spiking_answers(network, few, pairs, limits, tell)
        some = [Answers(a.name, a.classes[: len(few)]) for a in found if a.name != "integer"]
        T = max((m.levels for m in phase.network.modules() if isinstance(m, QuantReLU)), default=None)
        forms = [a.row(labels, None) for a in some if a.name != "float" or phase.bits == FLOAT_BITS]
        rows.append({"bits": phase.bits, "timesteps": T, "forms": forms})
    return rows or None
