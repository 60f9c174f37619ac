"""The schedules: when neurons step, when the run ends, and all else that one of them is; each is a row of one table.

What runs a network (the modules, the integer backends) asks the row, and knows none by name. `register` adds a row from
anywhere, under a name that `to_spiking`, integer networks and files then know.
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


@dataclass(frozen=True)
class Schedule:
    """One way to run a network in time.

    Attributes:
        name: what users and files call it.
        neurons: the kinds that it goes with, its own first.
        reason: why it goes with no other kind; empty if it goes with all.
        rule: when a neuron fires in one step, in floating point and in whole numbers alike.
        exact: every count equals the quantized activation: neurons and quantizer share a tie tolerance, layers may differ in
            levels, and half precision, which would break the promise, is refused.
        order: "together": all layers take each step, and a spike reaches the next layer within it. "in turn": a layer first
            integrates the whole window in silence, and gives its count out evenly in the next.
        windows: of T steps each, that a network together runs in: the first one shows the image, the others let neurons go on
            without image and bias. None is as many as it takes until no neuron fires.
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
            "neurons must be of signed and unsigned": not self.neurons or set(self.neurons) - set(get_args(Neuron)),
            "order must be together or in turn": self.order not in get_args(Order),
            "windows must be 1 or more": self.windows is not None and self.windows < 1,
        }.items():
            if given:
                raise ConfigError(f"schedule {self.name!r}: {problem}")

    def steps(self, timesteps: int, depth: int) -> int:
        """The steps that an image takes, or at most takes where it runs until no neuron fires (docs/concepts.md has the proof).

        Args:
            timesteps: T.
            depth: neurons on the longest path from image to head.
        """
        if self.order == "in turn":
            return (depth + 1) * timesteps
        return timesteps + (depth - 1) * (timesteps - 1) if self.windows is None else self.windows * timesteps

    def tie_tolerance(self, dtype: torch.dtype) -> float:
        """Charge beyond half a threshold, in units of it, that neurons start with and quantizers are compared with.

        It lies above the rounding of sums and far below a spike, so that a tie rounds alike in both.
        """
        if not self.exact:
            return 0.0
        return 1e-9 if dtype == torch.float64 else 1e-5


SCHEDULES: dict[str, Schedule] = {}


def register(schedule: Schedule) -> Schedule:
    """Make a schedule known under its name, and return it.

    Raises:
        ConfigError: the name is taken.
    """
    return add_named(SCHEDULES, "schedule", schedule.name, schedule)


def schedule_named(name: str) -> Schedule:
    """The schedule of this name.

    Raises:
        ConversionError: there is none; names close ones.
    """
    if name not in SCHEDULES:
        raise ConversionError(unknown("schedule", name, SCHEDULES))
    return SCHEDULES[name]


def exact_schedules() -> str:
    """The exact ones as a remedy names them: "schedule='settle' or 'barrier'"."""
    return "schedule=" + " or ".join(repr(name) for name, schedule in SCHEDULES.items() if schedule.exact)


def valid_pairs() -> tuple[tuple[Neuron, str], ...]:
    """Every (neuron, schedule) that goes together, as tables list them."""
    return tuple((neuron, schedule.name) for schedule in SCHEDULES.values() for neuron in reversed(schedule.neurons))


def check_pair(neuron: str | None, schedule: str) -> tuple[Neuron, str]:
    """A valid neuron and schedule; None stands for the schedule's own neuron.

    Raises:
        ConversionError: unknown, or they do not go together.
    """
    found = schedule_named(schedule)
    chosen: Neuron = found.neurons[0] if neuron is None else neuron  # type: ignore[assignment]
    if chosen not in get_args(Neuron):
        raise ConversionError(unknown("neuron", chosen, get_args(Neuron)))
    if chosen not in found.neurons:
        raise ConversionError(
            f"neuron={chosen!r} does not go with schedule={schedule!r}: {found.reason}; use neuron={found.neurons[0]!r}"
        )
    return chosen, schedule


def check_timesteps(wanted: int | None, timesteps: int) -> None:
    """Refuse another number of steps than the bits of a network's activations make; None wants none.

    Raises:
        ConversionError: says what decides T, and how a network for the number is had.
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
        name="settle",  # step on until no neuron can fire
        neurons=("signed",),
        reason="settling takes spikes back",
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
        reason="nothing is ever taken back behind a barrier",
        rule=capped_rule,
        exact=True,
        order="in turn",
        native={"unsigned": 3},
    )
)
