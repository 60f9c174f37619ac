"""Measure everything that a report shows, as plain values for JSON."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.data.images import LabelledImages
from nbsnn.energy.ledger import energy_ledger
from nbsnn.energy.prices import list_energy_models
from nbsnn.energy.pricing import price
from nbsnn.errors import ConfigError, MissingDependencyError, NbsnnError
from nbsnn.evaluation.bench import timed_rounds
from nbsnn.integer.lower import lower
from nbsnn.integer.network import IntegerNetwork
from nbsnn.quant.quantize import read_plan
from nbsnn.recipe import FLOAT_BITS
from nbsnn.report.answers import Answers, Tell, confusion, disagreements, integer_answers, module_answers
from nbsnn.report.charts import write_png
from nbsnn.report.subjects import RunPhase, Subject, example_for, fresh_float
from nbsnn.report.traces import LastSpikes, histogram_of_charges, raster, raster_positions, shares_of_counts
from nbsnn.spiking.schedules import valid_pairs
from nbsnn.summary import system_facts

Pairs = tuple[tuple[str, str], ...]  # of neuron and schedule

_SHOWN = 12  # images on which forms disagree
_RASTER_ROWS = 320  # neurons in a raster, of all layers, and at most 16 of each
_SPREAD = 33  # bars at most for the levels of a weight


@dataclass(frozen=True)
class ReportLimits:
    """The first images that the parts of a report are measured on: 0 is all.

    Attributes:
        stepped: accuracy of spikes, and counts that differ.
        counted: operations and energy.
        traced: when layers fall silent, counts and charges.
        timed: speed.
    """

    stepped: int = 500
    counted: int = 50
    traced: int = 12
    timed: int = 24


def measure_report(
    subject: Subject,
    images: LabelledImages | None,
    *,
    data: str | None = None,
    command: str | None = None,
    pairs: Iterable[tuple[str, str]] | None = None,
    limits: ReportLimits = ReportLimits(),
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
        "network": _facts(subject, network), "data": _data_facts(test, data, limits),
        "phases": [_curve(phase) for phase in subject.phases],
        "recipe": header.get("recipe"), "recipe_hash": header.get("recipe_hash"), "seed": header.get("seed"),
        "versions": header.get("versions"), "metrics": header.get("metrics") or {},
    }  # fmt: skip
    measured = None if test is None else _answers(subject, network, test, chosen, limits, tell)
    report |= _accuracies(measured, test, _SHOWN)
    report["by_timesteps"] = None if brief else _by_timesteps(subject, test, chosen, limits, tell, measured)
    layers = None if network is None or test is None or brief else _Layers(network, test, chosen, limits, tell)
    report["layers"] = layers and layers.rows(measured)
    report["raster"] = layers and layers.rasters()
    report["energy"] = layers and layers.energies()
    report["speed"] = None if test is None or brief else _speeds(subject, network, test, chosen, limits, tell)
    report["weights"] = network and _weights(network, subject.quantized)
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


def _facts(subject: Subject, network: IntegerNetwork | None) -> dict[str, Any]:
    header = subject.header
    module = subject.quantized if subject.quantized is not None else subject.float_net
    parameters = None if module is None else sum(p.numel() for p in module.parameters())
    plan = {} if subject.quantized is None else read_plan(subject.quantized)
    widths = {name: fmt.bits for name, fmt in plan.items()}
    named = header.get("model") or {}
    stored = None
    if network is not None:
        stored = sum(layer.weight.numel() * layer.weight.element_size() for layer in network.layers.values())
    packed = None
    if network is not None and widths:
        packed = sum(layer.weight.numel() * widths.get(layer.name, 32) for layer in network.layers.values()) // 8
    return {
        "model": named.get("name"), "form": header.get("form"), "content_hash": header.get("content_hash"),
        "parameters": parameters, "timesteps": network and network.timesteps, "depth": network and network.program.depth,
        "neurons": network and sum(int(torch.Size(unit.shape).numel()) for unit in network.program.units),
        "float_bytes": parameters and 4 * parameters, "packed_bytes": packed, "integer_bytes": stored,
        "notes": list(network.program.notes) if network else [],
    }  # fmt: skip


def _data_facts(images: LabelledImages | None, name: str | None, limits: ReportLimits) -> dict[str, Any] | None:
    if images is None:
        return None
    each = {key: min(len(images), value or len(images)) for key, value in vars(limits).items()}
    return {"name": name, "images": len(images), "classes": len(images.classes), "shape": list(images.shape), **each}


def _curve(phase: RunPhase) -> dict[str, Any]:
    return {"bits": phase.bits, "finished": phase.finished, "log": phase.log}


def _title(pair: tuple[str, str]) -> str:
    return f"{pair[0]} {pair[1]}"


def _spiking_answers(
    network: IntegerNetwork, images: LabelledImages, pairs: Iterable[tuple[str, str]], limits: ReportLimits, tell: Tell
) -> list[Answers]:
    stepped = images.some(limits.stepped)
    found = []
    for pair in pairs:
        options = {"engine": "spikes", "neuron": pair[0], "schedule": pair[1]}
        found.append(
            integer_answers(_title(pair), network, stepped, tell, options=options, compared=max(limits.traced, limits.counted))
        )
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
        entry["picture"] = _picture(test.pixels(torch.tensor([entry["image"]]))[0])
    return {"accuracy": rows, "disagreements": differing, "confusion": confusion(last.classes, labels, test.classes)}


def _picture(pixels: Tensor) -> str | None:
    """A small PNG as a data URI, of [C, H, W] uint8; None without a package that writes it."""
    step = max(1, max(pixels.shape[1:]) // 64)
    rgb = pixels[:, ::step, ::step] if len(pixels) == 3 else pixels[:1, ::step, ::step].expand(3, -1, -1)
    file = io.BytesIO()
    try:
        write_png(file, rgb.movedim(0, -1).cpu().numpy())
    except MissingDependencyError:
        return None
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


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
        T = None if phase.bits == FLOAT_BITS else 2**phase.bits - 1
        forms = [a.row(labels, None) for a in some if a.name != "float" or phase.bits == FLOAT_BITS]
        rows.append({"bits": phase.bits, "timesteps": T, "forms": forms})
    return rows or None


class _Layers:
    """What layers do under each neuron and schedule."""

    def __init__(
        self,
        network: IntegerNetwork,
        test: LabelledImages,
        pairs: Pairs,
        limits: ReportLimits,
        tell: Tell,
    ) -> None:
        self.network, self.pairs = network, pairs
        counted, traced = test.some(limits.counted).normalized(), test.some(limits.traced).normalized()
        self.ledgers = {
            pair: energy_ledger(network, counted, neuron=pair[0], schedule=pair[1], progress=partial(tell, "operations"))
            for pair in pairs
        }
        self.last: dict[tuple[str, str], LastSpikes] = {}
        for pair in pairs:
            watch = LastSpikes(network, len(traced))
            for number in range(len(traced)):  # one image at a time, so that the watch need not know chunks
                network.watch(traced[number : number + 1], watch.of(number), neuron=pair[0], schedule=pair[1])
            self.last[pair] = watch
            tell("activity", len(traced))
        self.counts = network.counts(traced)
        self.image = traced[:1]
        self.picture = _picture(test.pixels(slice(0, 1))[0])

    def rows(self, measured: dict[str, Answers] | None) -> list[dict[str, Any]]:
        """A row for each layer of neurons."""
        whole = next((pair for pair in self.pairs if pair[1] == "settle"), self.pairs[0] if self.pairs else None)
        rows = []
        for index, (name, unit) in enumerate(self.network.neurons.items()):
            ways = {}
            for pair in self.pairs:
                ledger, answers = self.ledgers[pair].layers[index], (measured or {})[_title(pair)]
                assert ledger.sent is not None
                last, neurons = self.last[pair].last[name], ledger.neurons * self.ledgers[pair].images
                ways[_title(pair)] = {
                    "off": 100 * answers.differing.get(name, 0) / max(answers.neurons.get(name, 0), 1),
                    "largest": answers.largest.get(name, 0), "silent_after": float(last.double().mean()),
                    "silent_after_most": int(last.max()), "spikes_per_neuron": ledger.sent.total / neurons,
                    "activity": [100 * int(n) / neurons for n in ledger.sent.positive + ledger.sent.negative],
                }  # fmt: skip
            charges = None if whole is None else histogram_of_charges(self.last[whole].charges(name), unit)
            rows.append({
                "name": name, "neurons": int(torch.Size(unit.shape).numel()), "shape": list(unit.shape),
                "levels": unit.levels, "threshold": unit.threshold, "height": unit.height,
                "counts": shares_of_counts(self.counts[name], unit), "charges": charges, "schedules": ways,
            })  # fmt: skip
        return rows

    def rasters(self) -> dict[str, Any]:
        """One image, with the same neurons under each schedule."""
        positions = raster_positions(self.network.counts(self.image), most=max(2, min(16, _RASTER_ROWS // len(self.counts))))
        ways = [raster(self.network, self.image, positions, neuron=pair[0], schedule=pair[1]) for pair in self.pairs]
        return {"image": 0, "picture": self.picture, "timesteps": self.network.timesteps, "ways": ways}

    def energies(self) -> list[dict[str, Any]]:
        """Totals per image, and the energy under every model of the package, for each neuron and schedule."""
        found = []
        for pair, ledger in self.ledgers.items():
            priced = [price(ledger, name) for name in list_energy_models()]
            found.append({
                "name": _title(pair), "images": ledger.images, "steps": float(ledger.steps.double().mean()),
                "per_image": {key: total / ledger.images for key, total in ledger.totals.items()},
                "energies": [
                    {"model": e.model.name, "title": e.model.title, "unit": e.model.unit, "source": e.model.source,
                     "spiking": e.spiking, "quantized": e.quantized, "float": e.unquantized, "ratio": e.ratio,
                     "float_ratio": e.float_ratio}
                    for e in priced
                ],
                "layers": [
                    {"name": layer.name, "activity": layer.activity,
                     "break_even": {e.model.name: e.layers[index].break_even for e in priced}}
                    for index, layer in enumerate(ledger.layers)
                ],
            })  # fmt: skip
        return found


def _speeds(
    subject: Subject,
    network: IntegerNetwork | None,
    test: LabelledImages,
    pairs: Pairs,
    limits: ReportLimits,
    tell: Tell,
) -> list[dict[str, Any]]:
    """Images per second of each form here, in rounds that take turns."""
    images = test.some(limits.timed).normalized()
    modules = {"float": fresh_float(subject), "quantized": subject.quantized}
    runs: dict[str, Any] = {name: _runner(module.eval()) for name, module in modules.items() if module is not None}
    ways: dict[str, IntegerNetwork] = {}
    if network is not None:
        ways = {"counts": network.using(engine="counts")}
        ways |= {f"spikes, {_title(p)}": network.using(engine="spikes", neuron=p[0], schedule=p[1]) for p in pairs}
        runs |= {name: way.run for name, way in ways.items()}
    times = timed_rounds(runs, [images], repeats=2, progress=lambda what, count: tell("speed", count))
    return [
        {"name": name, "backend": ways[name].backend if name in ways else "torch",
         "images_per_second": len(images) / median(seconds), "seconds": median(seconds)}
        for name, seconds in times.items()
    ]  # fmt: skip


def _runner(module: nn.Module) -> Any:
    kind = next(module.parameters())
    return lambda x: module(x.to(kind))


def _weights(network: IntegerNetwork, quantized: nn.Module | None) -> list[dict[str, Any]]:
    """Each weight layer's integers and how many weights have them; of more than 33 levels, bins of equal width."""
    plan = {} if quantized is None else read_plan(quantized)
    rows = []
    for name, layer in network.layers.items():
        values = layer.weight.flatten().to(torch.int64)
        levels, counts = torch.unique(values, return_counts=True)
        if len(levels) > _SPREAD:
            low, high = int(levels[0]), int(levels[-1])
            width = -(-(high - low + 1) // _SPREAD)
            counts = torch.bincount((values - low) // width)
            levels = low + width * torch.arange(len(counts)) + (width - 1) // 2
        rows.append({
            "name": name, "neurons": layer.neurons, "shape": list(layer.weight.shape), "weights": values.numel(),
            "bits": plan[name].bits if name in plan else None, "type": str(layer.weight.dtype).removeprefix("torch."),
            "zeros": 100 * int((values == 0).sum()) / values.numel(), "levels": levels.tolist(), "counts": counts.tolist(),
            "threshold": layer.threshold,
        })  # fmt: skip
    return rows
