"""The schedules: when neurons step, when the run ends, and all other properties of a schedule, one entry each.

The code that runs a network (modules, integer backends) uses these properties and no names of schedules. `register` adds a
schedule, whose name `to_spiking`, integer networks and files then know.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from nbsnn.errors import ConfigError, ConversionError, unknown
from nbsnn.naming import add_named
from nbsnn.spiking.functional import Rule, capped_rule, published_rule

Neuron = Literal["signed", "unsigned"]
Order = Literal["together", "in turn"]
_NEURONS = get_args(Neuron)


@dataclass(frozen=True)
class Schedule:
    """A schedule: how a network runs in time.

    Attributes:
        name: used by users and in files.
        neurons: supported kinds of neurons, the default first.
        reason: why other kinds are not supported; empty if all are.
        rule: when a neuron fires in one step, for floating point and for integers.
        exact: every count equals the quantized activation: neurons and quantizer share a tie tolerance, layers may differ in
            levels, and half precision raises an error.
        order: "together": all layers take each step, and a spike reaches the next layer in the same step. "in turn": a layer
            first integrates the whole window without firing, and emits its count evenly in the next.
        windows: number of windows of T steps for "together": the first one shows the image, the others run without image and
            bias. None: as many as needed until no neuron fires.
        native: kind of neuron → mode of the C++ kernel (integer/native/net.h); without one, only torch runs it.
    """

    name: str
    neurons: tuple[Neuron, ...]
    rule: Rule
    reason: str = ""
    exact: bool = False
    order: Order = "together"
    windows: int | None = 1
    native: Mapping[Neuron, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for problem, given in {
            "neurons must be of signed and unsigned": not self.neurons or set(self.neurons) - set(_NEURONS),
            "order must be together or in turn": self.order not in get_args(Order),
            "windows must be 1 or more": self.windows is not None and self.windows < 1,
        }.items():
            if given:
                raise ConfigError(f"schedule {self.name!r}: {problem}")

    def steps(self, timesteps: int, depth: int) -> int:
        """The steps of an image, or an upper bound if it runs until no neuron fires (proof in docs/concepts.md).

        Args:
            timesteps: T.
            depth: neurons on the longest path from image to head.
        """
        if self.order == "in turn":
            return (depth + 1) * timesteps
        return timesteps + (depth - 1) * (timesteps - 1) if self.windows is None else self.windows * timesteps

    def tie_tolerance(self, dtype: torch.dtype) -> float:
        """Initial charge beyond half a threshold, in units of the threshold, also added in quantizers for a comparison.

        It is above the rounding error of sums and far below a spike, so both round a tie alike.
        """
        if not self.exact:
            return 0.0
        return 1e-9 if dtype == torch.float64 else 1e-5


SCHEDULES: dict[str, Schedule] = {}


def register(schedule: Schedule) -> Schedule:
    """Register a schedule under its name, and return it.

    Raises:
        ConfigError: the name is taken.
    """
    return add_named(SCHEDULES, "schedule", schedule.name, schedule)


def schedule_named(name: str) -> Schedule:
    """The schedule of this name.

    Raises:
        ConversionError: unknown name; suggests close matches.
    """
    if name not in SCHEDULES:
        raise ConversionError(unknown("schedule", name, SCHEDULES))
    return SCHEDULES[name]


def exact_schedules() -> str:
    """The exact schedules, for a message: "schedule='settle' or 'barrier'"."""
    return "schedule=" + " or ".join(repr(name) for name, schedule in SCHEDULES.items() if schedule.exact)


def valid_pairs() -> tuple[tuple[Neuron, str], ...]:
    """Every supported (neuron, schedule), in the order of tables."""
    return tuple((neuron, schedule.name) for schedule in SCHEDULES.values() for neuron in reversed(schedule.neurons))


def check_pair(neuron: str | None, schedule: str) -> tuple[Neuron, str]:
    """Check neuron and schedule; None stands for the schedule's default neuron.

    Raises:
        ConversionError: unknown, or not supported together.
    """
    found = schedule_named(schedule)
    chosen: Neuron = found.neurons[0] if neuron is None else neuron  # type: ignore[assignment]
    if chosen not in _NEURONS:
        raise ConversionError(unknown("neuron", chosen, _NEURONS))
    if chosen not in found.neurons:
        raise ConversionError(
            f"neuron={chosen!r} does not go with schedule={schedule!r}: {found.reason}; use neuron={found.neurons[0]!r}"
        )
    return chosen, schedule


def check_timesteps(wanted: int | None, timesteps: int) -> None:
    """Raise an error unless `wanted` is None or the number of steps given by the bits of a network's activations.

    Raises:
        ConversionError: says what determines T, and how to train a network for `wanted`.
    """
    if wanted is None or wanted == timesteps:
        return
    bits = {2**bits - 1: bits for bits in range(2, 9)}
    remedy = f"for T = {wanted} train with {bits[wanted]} bits" if wanted in bits else f"T may be {', '.join(map(str, bits))}"
    raise ConversionError(
        f"timesteps={wanted}: the bits b of the activations decide T = 2^b - 1, which is {timesteps} in this network; {remedy}"
    )


register(
    Schedule(
        name="fixed",  # T steps and stop, as published (Hu et al., 2023)
        neurons=("signed", "unsigned"),
        rule=published_rule,
        native={"unsigned": 0, "signed": 1},
    )
)
register(
    Schedule(
        name="settle",  # continue until no neuron can fire
        neurons=("signed",),
        reason="settling needs negative spikes",
        rule=capped_rule,
        exact=True,
        windows=None,
        native={"signed": 2},
    )
)
register(
    Schedule(
        name="barrier",  # layer after layer, fewest spikes
        neurons=("unsigned",),
        reason="under barrier no spike is premature, so neurons are unsigned",
        rule=capped_rule,
        exact=True,
        order="in turn",
        native={"unsigned": 3},
    )
)
