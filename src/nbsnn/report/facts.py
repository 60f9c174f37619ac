"""What a network is, without its answers: sizes, weights, and speed on this machine."""

from statistics import median
from typing import Any

import torch
from torch import nn

from nbsnn.data.images import LabelledImages
from nbsnn.evaluation.bench import timed_rounds
from nbsnn.integer.network import IntegerNetwork
from nbsnn.quant.plans import read_plan
from nbsnn.report.answers import Tell
from nbsnn.report.limits import Pairs, ReportLimits, pair_title
from nbsnn.report.subjects import Subject, fresh_float

_SPREAD = 33  # bars at most for the levels of a weight


def network_facts(subject: Subject, network: IntegerNetwork | None) -> dict[str, Any]:
    """Sizes of a network, and what its file says of it."""
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


def data_facts(images: LabelledImages | None, name: str | None, limits: ReportLimits) -> dict[str, Any] | None:
    """The images, and how many of them each part is measured on."""
    if images is None:
        return None
    each = {key: min(len(images), value or len(images)) for key, value in vars(limits).items()}
    return {"name": name, "images": len(images), "classes": len(images.classes), "shape": list(images.shape), **each}


def weights_of(network: IntegerNetwork, quantized: nn.Module | None) -> list[dict[str, Any]]:
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


def speeds_of(
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
        ways |= {f"spikes, {pair_title(p)}": network.using(engine="spikes", neuron=p[0], schedule=p[1]) for p in pairs}
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
