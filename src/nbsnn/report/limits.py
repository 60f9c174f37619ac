"""How many images the parts of a report are measured on, and how they run in time."""

from dataclasses import dataclass

Pairs = tuple[tuple[str, str], ...]  # of neuron and schedule


def pair_title(pair: tuple[str, str]) -> str:
    """A neuron and a schedule in words."""
    return f"{pair[0]} {pair[1]}"


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
