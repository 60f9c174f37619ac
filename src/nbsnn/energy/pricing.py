"""Energy of a ledger under a model: spiking, beside the same-bit quantized network, and then beside the float one."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nbsnn.energy.ledger import EnergyLedger, LayerLedger
from nbsnn.energy.prices import EnergyModel, load_energy_model

_SPIKES = ("additions", "weight_fetches", "arrivals")  # proportional to the spikes that arrive


@dataclass(frozen=True)
class LayerEnergy:
    """Energy of a layer per image, in the model's unit; `unquantized` is of the float network.

    Attributes:
        activity: spikes per synapse and image, over all steps; None if only the image feeds the layer.
        break_even: the activity at which the spiking layer costs as much as the quantized one, as it is in all else: below it,
            spikes are cheaper. 0 if not even a silent layer is; None without spikes that arrive or without a price on them.
    """

    name: str
    spiking: float
    quantized: float
    unquantized: float
    activity: float | None
    break_even: float | None

    @property
    def ratio(self) -> float | None:
        """Spiking over quantized."""
        return self.spiking / self.quantized if self.quantized else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"float" if key == "unquantized" else key: value for key, value in asdict(self).items()} | {"ratio": self.ratio}


@dataclass(frozen=True)
class Energy:
    """Energy per image of the three forms of a network under a model."""

    model: EnergyModel
    layers: tuple[LayerEnergy, ...]
    spiking: float
    quantized: float
    unquantized: float

    @property
    def ratio(self) -> float | None:
        """Spiking over the same-bit quantized network: the comparison that matters."""
        return self.spiking / self.quantized if self.quantized else None

    @property
    def float_ratio(self) -> float | None:
        """Spiking over the float network: includes what quantization alone saves."""
        return self.spiking / self.unquantized if self.unquantized else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "model": self.model.to_dict(), "unit": self.model.unit, "spiking": self.spiking, "quantized": self.quantized,
            "float": self.unquantized, "ratio": self.ratio, "float_ratio": self.float_ratio,
            "layers": [layer.to_dict() for layer in self.layers],
        }  # fmt: skip


def price(ledger: EnergyLedger, model: EnergyModel | str | Path) -> Energy:
    """The energy of a ledger.

    Args:
        ledger: result of `nbsnn.energy_ledger`.
        model: or a name of `nbsnn.list_energy_models()`, or a TOML file.
    Raises:
        ConfigError: as in `nbsnn.load_energy_model`.
    """
    prices = model if isinstance(model, EnergyModel) else load_energy_model(model)
    layers = tuple(_layer(layer, prices, ledger) for layer in ledger.layers)
    spiking, quantized, real = (
        sum(getattr(layer, form) for layer in layers) for form in ("spiking", "quantized", "unquantized")
    )
    return Energy(prices, layers, spiking, quantized, real)


def _layer(layer: LayerLedger, prices: EnergyModel, ledger: EnergyLedger) -> LayerEnergy:
    T, images = ledger.timesteps, ledger.images
    is_unit = layer.sent is not None
    counts: dict[str, float] = {
        "additions": int(layer.additions.sum()), "weight_fetches": int(layer.weight_fetches.sum()),
        "arrivals": int(layer.arrivals.sum()), "updates": int(layer.updates.sum()), "rescalings": layer.rescalings,
        "constant_additions": layer.constant_additions,
        "image_products": layer.image_products * (T if prices.image_every_step else 1),
        "spikes": layer.sent.total if layer.sent else 0,
    }  # fmt: skip
    dense: dict[str, float] = {
        "macs": layer.macs, "skips": layer.skips, "activations": layer.activations, "image_products": layer.image_products,
        "rescalings": layer.rescalings_quantized, "weights": layer.weights * images,
        "constant_additions": layer.constant_additions // (T if is_unit else 1),
    }  # fmt: skip
    spent = {key: prices.spiking.get(key, 0.0) * number / images for key, number in counts.items()}
    spiking, arriving = sum(spent.values()), sum(spent[key] for key in _SPIKES)
    quantized, real = (
        sum(table.get(key, 0.0) * number / images for key, number in dense.items())
        for table in (prices.quantized, prices.float)
    )
    activity = layer.activity
    break_even = None
    if activity and arriving:
        break_even = max(0.0, quantized - (spiking - arriving)) / arriving * activity
    return LayerEnergy(layer.name, spiking, quantized, real, activity, break_even)
