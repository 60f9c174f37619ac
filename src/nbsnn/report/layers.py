"""Layers of a network in time: activity, counts, charges, a raster, operations and energy."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from nbsnn.data.images import LabelledImages
from nbsnn.energy.ledger import energy_ledger
from nbsnn.energy.prices import list_energy_models
from nbsnn.energy.pricing import price
from nbsnn.integer.network import IntegerNetwork
from nbsnn.report.answers import Answers, Tell
from nbsnn.report.drawing import picture
from nbsnn.report.limits import Pairs, ReportLimits, pair_title
from nbsnn.report.traces import LastSpikes, histogram_of_charges, raster, raster_positions, shares_of_counts

_RASTER_ROWS = 320  # neurons in a raster, of all layers, and at most 16 of each


class LayersInTime:
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
        self.picture = picture(test.pixels(slice(0, 1))[0])

    def rows(self, measured: dict[str, Answers] | None) -> list[dict[str, Any]]:
        """A row for each layer of neurons."""
        whole = next((pair for pair in self.pairs if pair[1] == "settle"), self.pairs[0] if self.pairs else None)
        rows = []
        for index, (name, unit) in enumerate(self.network.neurons.items()):
            ways = {}
            for pair in self.pairs:
                ledger, answers = self.ledgers[pair].layers[index], (measured or {})[pair_title(pair)]
                assert ledger.sent is not None
                last, neurons = self.last[pair].last[name], ledger.neurons * self.ledgers[pair].images
                ways[pair_title(pair)] = {
                    "off": 100 * answers.differing.get(name, 0) / max(answers.neurons.get(name, 0), 1),
                    "largest": answers.largest.get(name, 0), "silent_after": float(last.double().mean()),
                    "silent_after_most": int(last.max()), "spikes_per_neuron": ledger.sent.total / neurons,
                    "activity": _active((ledger.sent.positive + ledger.sent.negative).double() * (100 / neurons)),
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
                "name": pair_title(pair), "images": ledger.images, "steps": float(ledger.steps.double().mean()),
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


def _active(shares: Tensor) -> dict[str, Any]:
    """Shares [steps] from the first to the last one that is not 0: under "barrier" a layer is silent in most steps."""
    steps = shares.nonzero().flatten()
    first, end = (int(steps[0]), int(steps[-1]) + 1) if len(steps) else (0, 0)
    return {"steps": len(shares), "first": first + 1, "shares": [round(share, 4) for share in shares[first:end].tolist()]}
