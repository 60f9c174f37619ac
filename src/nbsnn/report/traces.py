"""What layers do in time: when they fall silent, the charge around their thresholds, and a raster of one image."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nbsnn.integer.backends.torch import Watch
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.nodes import Unit

BINS_PER_SPIKE = 4  # of charges
_LETTERS = "-.+"  # of a spike −1, 0, 1


class LastSpikes:
    """The last step with a spike of each layer and image, [images], and membranes and counts at the end, [images, *shape]."""

    def __init__(self, network: IntegerNetwork, images: int) -> None:
        self.units = {unit.name: unit for unit in network.program.units}
        self.last = {name: torch.zeros(images, dtype=torch.int64) for name in self.units}
        shapes = {name: (images, *unit.shape) for name, unit in self.units.items()}
        self.membrane = {name: torch.zeros(shape, dtype=torch.int64) for name, shape in shapes.items()}
        self.count = {name: torch.zeros(shape, dtype=torch.int64) for name, shape in shapes.items()}

    def of(self, image: int) -> Watch:
        """The `watch` of a run of this image alone."""

        def watch(name: str, step: int, images: Tensor, spikes: Tensor | None, membrane: Tensor | None) -> None:
            if membrane is None:
                return
            self.membrane[name][image] = membrane[0].cpu()
            if spikes is not None:
                self.count[name][image] += spikes[0].cpu()
                if bool(spikes.any()):
                    self.last[name][image] = step

        return watch

    def charges(self, name: str) -> Tensor:
        """The whole charge of each neuron and image, in units of a spike: z = N + V/θ − ½."""
        return self.count[name].double() + self.membrane[name].double() / self.units[name].threshold - 0.5


def histogram_of_charges(charges: Tensor, unit: Unit) -> list[float]:
    """Shares in percent of charges below −1, in bins of a quarter of a spike from −1 to L + 1, and above."""
    edges = torch.arange(-BINS_PER_SPIKE, (unit.levels + 1) * BINS_PER_SPIKE + 1, dtype=torch.float64) / BINS_PER_SPIKE
    bins = torch.bucketize(charges.flatten(), edges, right=True)
    return [round(100 * n / charges.numel(), 4) for n in torch.bincount(bins, minlength=len(edges) + 1).tolist()]


def shares_of_counts(counts: Tensor, unit: Unit) -> list[float]:
    """Shares in percent of neurons with 0 to L net spikes."""
    return [
        round(100 * n / counts.numel(), 4) for n in torch.bincount(counts.flatten().long(), minlength=unit.levels + 1).tolist()
    ]


def raster_positions(counts: dict[str, Tensor], *, most: int) -> dict[str, list[tuple[int, ...]]]:
    """Neurons to show of each layer: spread evenly over those that fire for the image, filled up with silent ones."""
    chosen = {}
    for name, count in counts.items():
        flat = count[0].flatten()
        firing, silent = (flat != 0).nonzero().flatten(), (flat == 0).nonzero().flatten()
        places = [*_spread(firing, most), *_spread(silent, max(0, most - len(firing)))][:most]
        shape = tuple(count.shape[1:])
        chosen[name] = [tuple(int(i) for i in torch.unravel_index(torch.tensor(place), shape)) for place in sorted(places)]
    return chosen


def _spread(places: Tensor, most: int) -> list[int]:
    if not len(places) or not most:
        return []
    return [int(i) for i in places[torch.linspace(0, len(places) - 1, min(most, len(places))).round().long()]]


def raster(
    network: IntegerNetwork, image: Tensor, positions: Mapping[str, Sequence[tuple[int, ...]]], *, neuron: str, schedule: str
) -> dict[str, Any]:
    """The spikes of one image [1, C, H, W]: a row of letters per neuron, "+" a spike, "-" a negative one, "." none.

    A layer's letters are of the steps from the `first` to the last one in which one of these neurons fires.
    """
    seen = network.record(image, positions=positions, neuron=neuron, schedule=schedule)
    layers = []
    for name in seen.layers:
        spikes = seen.spikes[name][:, 0].flatten(1)
        steps = spikes.any(1).nonzero().flatten()
        first, end = (int(steps[0]), int(steps[-1]) + 1) if len(steps) else (0, 0)
        rows = spikes[first:end].T
        layers.append({
            "name": name, "first": first + 1, "positions": [list(place) for place in seen.positions[name] or ()],
            "rows": ["".join(_LETTERS[spike + 1] for spike in row) for row in rows.tolist()],
        })  # fmt: skip
    return {"neuron": neuron, "schedule": schedule, "steps": int(seen.steps[0]), "layers": layers}
