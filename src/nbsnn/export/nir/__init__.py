"""NIR, the neuromorphic intermediate representation: networks as HDF5 files that many simulators and chips read.

Pedersen et al., "Neuromorphic intermediate representation", Nature Communications 15, 2024. What each profile keeps is said by
`nir_limits` before a file is written.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.errors import ConversionError, LoweringError
from nbsnn.export.nir.exact import exact_graph
from nbsnn.export.nir.plain import plain_graph
from nbsnn.export.registry import Exporter, ExportOptions, planned, register
from nbsnn.integer.lower import lower
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.nodes import MaxPool
from nbsnn.integer.program import Program
from nbsnn.interop.nirfile import write_nir
from nbsnn.spiking.convert import to_quantized
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.spiking.schedules import Neuron, check_pair, schedule_named

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NirProfile:
    """A way to write a network.

    Attributes:
        schedule: of the exact neurons; None: the network's own.
        plain: IF nodes in place of exact neurons.
        charged: plain neurons begin with half a threshold, which `nbsnn.interop.patch` gives them.
    """

    schedule: str | None = None
    plain: bool = False
    charged: bool = False


PROFILES = {
    "exact": NirProfile(),
    "exact-settle": NirProfile(schedule="settle"),
    "if": NirProfile(plain=True),
    "if-charged": NirProfile(plain=True, charged=True),
}


@checked_arguments
def export_nir(
    network: nn.Module | IntegerNetwork,
    path: str | Path,
    profile: str = "exact",
    *,
    example: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> int:
    """Write a network to a NIR file; what the profile does not keep is logged as warnings first.

    Args:
        network: an integer network, or a quantized or spiking one, which is lowered to that.
        path: `.nir`.
        profile: "exact": neurons made of integrators and thresholds, which fire our spikes in every step, under the neuron and
            schedule of the network (signed and "fixed" unless it has others). "exact-settle": the same under the schedule
            "settle", whose logits are the quantized network's. "if": plain unsigned IF neurons, with half a threshold spread
            over the bias. "if-charged": half a threshold is given by `nbsnn.interop.patch`.
        example: [B, C, H, W] normalized images, to lower a quantized network with; one is enough.
        mean, std: [C] of the normalization, as in `nbsnn.lower`.
    Returns:
        Bytes of the file.
    Raises:
        ConfigError: unknown profile, a network of another form, or no example for a quantized one.
        ConversionError, LoweringError: the network cannot be lowered, or the profile cannot express a layer.
        MissingDependencyError: nir is not installed.
    """
    plan = planned(path, network, EXPORTER, ExportOptions(profile, example, mean, std))
    for line in plan.limits():
        logger.warning(line)
    return sum(plan.write().files.values())


def nir_graph(network: IntegerNetwork | SpikingNetwork, profile: str = "exact") -> Any:
    """The `nir.NIRGraph` that `export_nir` writes.

    Raises:
        ConversionError, LoweringError, MissingDependencyError: as there.
    """
    program, neuron, schedule = _program(network, PROFILES[profile])
    if PROFILES[profile].plain:
        return plain_graph(program, charged=PROFILES[profile].charged)
    return exact_graph(program, neuron=neuron, schedule=schedule)


def nir_limits(network: IntegerNetwork | SpikingNetwork, options: ExportOptions) -> list[str]:
    """What NIR under a profile does not keep, or needs from whoever reads the file, a line each.

    Raises:
        ConversionError, LoweringError: the profile cannot express the network.
    """
    profile = PROFILES[options.profile or "exact"]
    program, neuron, schedule = _program(network, profile)
    grouped = [unit.name for unit in program.units if any(branch.groups > 1 for branch in unit.branches)]
    lines = [f"grouped convolutions ({len(grouped)}) are written with zeros between their groups"] if grouped else []
    if not profile.plain:
        pools = sum(isinstance(node, MaxPool) for node in program.nodes)
        lines += [f"max pools ({pools}) are written as thresholds and sums"] if pools else []
        found = schedule_named(schedule)
        after = (
            f", then zeros in at most {found.steps(program.timesteps, program.depth)} steps in all" if not found.windows else ""
        )
        return [*lines, f"show the image in {program.timesteps} steps{after}; a step lasts one unit of time"]
    if neuron == "signed":
        lines.append("plain neurons are unsigned: without negative spikes more counts differ from the quantized network's")
    half = (
        "is given by nbsnn.interop.patch, not in the file"
        if profile.charged
        else "is spread over the bias, which changes counts"
    )
    return [
        *lines,
        f"the initial half threshold {half}",
        "NIR's neurons reset to 0, ours subtract the threshold: nbsnn.interop.patch mends that in other simulators",
        "the image's current is not rounded as in the integer network",
    ]


def _program(network: IntegerNetwork | SpikingNetwork, profile: NirProfile) -> tuple[Program, Neuron, str]:
    """The program, and the neuron and schedule that its spikes are written for."""
    if isinstance(network, SpikingNetwork):
        wanted = {"neuron": network.neuron, "schedule": network.schedule}
        network = lower(to_quantized(network), torch.zeros(1, *network.image_shape))
    else:
        wanted = {name: network.options[name] for name in ("neuron", "schedule") if name in network.options}
    if profile.plain:
        wanted = {"schedule": "fixed"} | ({"neuron": wanted["neuron"]} if "neuron" in wanted else {})
    elif profile.schedule is not None:
        wanted = {"schedule": profile.schedule}
    neuron, schedule = check_pair(wanted.get("neuron"), wanted.get("schedule", "fixed"))
    _check(network.program, schedule)
    return network.program, neuron, schedule


def _check(program: Program, schedule: str) -> None:
    found = schedule_named(schedule)
    if found.order != "together" or found.windows not in (1, None):
        raise ConversionError(
            f"schedule={schedule!r} has no NIR form, since layers take turns; profile='exact-settle' has the same counts"
        )
    if program.readout is not None:
        raise LoweringError(
            "the network returns several tensors, and a NIR graph has one output; export the part up to one of them"
        )
    if any(branch.source in program.constants for branch in program.head.branches):
        raise LoweringError(
            "the output reads the image without neurons between, which NIR cannot sum once; add a layer with ReLU"
        )
    if not found.exact and (uneven := [unit.name for unit in program.units if unit.levels != program.timesteps]):
        raise LoweringError(
            f"{uneven[0]} has fewer levels than T = {program.timesteps}, for which a fixed number of steps is not exact; "
            "use profile='exact-settle'"
        )


def _write(path: Path, network: Any, options: ExportOptions) -> None:
    write_nir(path, nir_graph(network, options.profile or "exact"))


EXPORTER = register(
    Exporter(
        "nir", "a NIR graph", ("integer", "spiking"), _write, suffix=".nir", profiles=tuple(PROFILES), limits=nir_limits,
        package="nir", extra="nir",
    )
)  # fmt: skip
