"""Windows and maps of places along an axis as the runtime reads them: by a formula where there is one, else by a table."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nbsnn.integer.frozen import thawed
from nbsnn.integer.maps import AxisMap


@dataclass(frozen=True, eq=False)
class Axis:
    """Fields of `nbsnn_axis`: read k of place i is i·stride + start + k·step, or in the tables [reads, places]."""

    places: int
    reads: int
    stride: int = 0
    start: int = 0
    step: int = 0
    index: NDArray[np.int32] | None = None
    weight: NDArray[np.int16] | None = None


def window_axis(places: int, kernel: int, stride: int, padding: int) -> Axis:
    """The windows of a pool."""
    return Axis(places, kernel, stride, -padding, 1)


def as_axis(axis: AxisMap) -> Axis:
    """A map's axis, as windows if it is sums over regular ones."""
    index, weight = thawed(axis.index).numpy(), thawed(axis.weight).numpy()
    reads, places = index.shape
    if np.array_equal(weight, index >= 0) and (found := _windows(index, axis.size)):
        return Axis(places, *found)
    ones = np.array_equal(weight, index >= 0)
    return Axis(places, reads, index=index.astype(np.int32), weight=None if ones else weight.astype(np.int16))


def _windows(index: NDArray[np.int32], size: int) -> tuple[int, int, int, int] | None:
    """Reads, stride, start and step of the windows with these places in a source of `size`; None if they are not regular."""
    sets = [frozenset(column[column >= 0].tolist()) for column in index.T]
    if sum(map(len, sets)) != int((index >= 0).sum()):
        return None  # a place twice in a window
    reads, places = index.shape
    middle = [i for i, found in enumerate(sets) if len(found) == reads]  # windows that no border cuts
    if not middle:
        return None
    first = sorted(sets[middle[0]])
    step = first[1] - first[0] if reads > 1 else 1
    whole, stride = middle[0], 0
    if whole > 0:  # a border cuts the window before at its start, and the one behind at its end
        stride = first[-1] - max(sets[whole - 1], default=0)
    elif places > 1:
        stride = min(sets[whole + 1], default=0) - first[0]
    start = first[0] - stride * whole
    regular = [
        frozenset(p for p in (i * stride + start + k * step for k in range(reads)) if 0 <= p < size) for i in range(places)
    ]
    return (reads, stride, start, step) if regular == sets else None
