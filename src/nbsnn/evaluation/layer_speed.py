"""How fast the native kernel computes each layer, as a share of what the processor's instructions allow.

Work is counted in binary synapses: a synapse that reads one plane of spikes (a step) or of counts (a bit). The limit of a
layer is that of the fastest kind of instruction that serves, on one core with operands in the first cache: look-ups, one
for each digit of the weights; wide look-ups, for counts of two bits or more and for ternary weights; or dot products of
8-bit numbers, which handle all planes of a count at once. The image's 24-bit pixels need three dot products.
"""

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from torch import Tensor

from nbsnn.errors import ConfigError
from nbsnn.integer.backends import library, native
from nbsnn.integer.backends.library import Rate
from nbsnn.integer.frozen import thawed
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.nodes import Branch, Head, Unit
from nbsnn.integer.pixels import to_integers
from nbsnn.integer.program import Program
from nbsnn.spiking.schedules import check_pair, schedule_named

_PIXEL_BYTES = 3
_KINDS = {"look-up": ("look-up",), "wide": ("wide",), "dot": ("dot", "float")}
_WIDE = 9  # largest |weight| whose sums with counts fit a table of int8
_DIGIT = 8  # largest |weight| of a digit but the last, which takes up to 31


@dataclass(frozen=True)
class LayerSpeed:
    """One layer on one core.

    Attributes:
        synapses: of an image, at every place; borders included.
        work: binary synapses of an image.
        seconds: of an image.
        work_share, time_share: of the network's, in percent; time outside of layers is in no share.
        achieved, limit: binary synapses a second; `ratio` is achieved over limit.
    """

    name: str
    synapses: int
    work: int
    seconds: float
    work_share: float
    time_share: float
    achieved: float
    limit: float
    ratio: float


@dataclass(frozen=True)
class LayerSpeeds:
    """Result of `measure_layers`; `rates` are the processor's, `target` the instruction set that ran."""

    engine: str
    batch: int
    target: str
    rates: tuple[Rate, ...]
    layers: tuple[LayerSpeed, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def measure_layers(network: IntegerNetwork, images: Tensor, *, repeats: int = 5) -> LayerSpeeds:
    """Time each layer of a batch on one thread; the least of the repeats counts.

    Args:
        network: its options choose the engine; under "settle" spikes take more steps than the T that are counted as work.
        images: [B, C, H, W], as for `run`.
    Raises:
        ConfigError: the native backend cannot run.
    """
    program, options = network.program, network.options
    if (obstacle := library.why_not()) is not None:
        raise ConfigError(f"layers are timed in the native backend, which cannot run: {obstacle}")
    mode, name, engine = native.COUNTS_MODE, "counts", options.get("engine", "counts")
    if engine == "spikes":
        neuron, schedule = check_pair(options.get("neuron"), options.get("schedule", "fixed"))
        mode, name = schedule_named(schedule).native[neuron], f"spikes, {neuron} {schedule}"
    pixels, rates = to_integers(program.pixels, images), library.measured_rates()
    runs = [native.node_seconds(program, pixels, mode) for _ in range(repeats + 1)][1:]
    seconds = {node: min(run[node] for run in runs) / len(pixels) for node in runs[0]}
    groups: dict[str, tuple[Unit | Head, ...]] = {unit.name: (unit,) for unit in program.units}
    rows = []
    for layer, parts in (groups | {Head.name: program.heads}).items():
        works = [_work(program, part, branch, rates, engine) for part in parts for branch in part.branches]
        synapses, work = sum(w[0] for w in works), sum(w[1] for w in works)
        rows.append((layer, synapses, work, seconds[layer], sum(w[1] / w[2] for w in works)))
    whole, total = sum(row[2] for row in rows), sum(seconds.values())
    layers = tuple(
        LayerSpeed(
            layer, synapses, work, taken, 100 * work / whole, 100 * taken / total, work / taken, work / least, least / taken
        )
        for layer, synapses, work, taken, least in rows
    )
    return LayerSpeeds(name, len(pixels), library.targets()[-1], rates, layers)


def _work(program: Program, node: Unit | Head, branch: Branch, rates: tuple[Rate, ...], engine: str) -> tuple[int, int, float]:
    """Synapses and binary synapses of a branch, and its limit in the latter a second."""
    places = prod(branch.after.size if branch.after is not None else node.shape[1:])
    synapses = (thawed(branch.weight).numel() if branch.weight is not None else node.shape[0]) * places
    fastest = {
        kind: max((rate.per_second for rate in rates if rate.kind in kinds), default=0.0) for kind, kinds in _KINDS.items()
    }
    look_up, dot = fastest["look-up"], fastest["dot"]
    if branch.source in program.constants:
        return synapses, synapses, dot / _PIXEL_BYTES
    planes = program.timesteps if engine == "spikes" else program.timesteps.bit_length()
    largest = int(thawed(branch.weight).abs().max()) if branch.weight is not None else 1
    digits = 1
    while largest > 31:
        largest, digits = (largest + _DIGIT) // (2 * _DIGIT), digits + 1
    if digits == 1 and (largest == 1 or (largest <= _WIDE and engine == "counts" and planes > 1)):
        look_up = max(look_up, fastest["wide"])
    return synapses, synapses * planes, max(look_up / digits, dot * (planes if engine == "counts" else 1))
