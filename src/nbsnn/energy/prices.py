"""Energy models: prices of counted operations, from TOML files in the package or of the user."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbsnn.errors import ConfigError, shown, unknown

_FOLDER = Path(__file__).parent / "models"
_SHARED = ("constant_additions", "image_products", "rescalings", "skips", "macs", "activations", "weights")
FORMS: Mapping[str, tuple[str, ...]] = {
    "spiking": (
        "additions", "weight_fetches", "arrivals", "updates", "constant_additions", "image_products", "rescalings", "spikes",
    ),
    "quantized": _SHARED,
    "float": _SHARED,
}  # fmt: skip


@dataclass(frozen=True)
class EnergyModel:
    """Prices of operations, each in `unit` for one of what `EnergyLedger` counts.

    Attributes:
        name: of the file, without its ending.
        title: one line.
        unit: such as "pJ".
        source: where the prices come from.
        assumptions: what they take for granted, one line each.
        spiking, quantized, float: operation → price; an operation that is not named costs nothing. Operations are counts of
            `LayerLedger`; `spikes` are those that a layer sends, and `weights` are read once per image.
        image_every_step: whether a spiking network multiplies the image in each of the T steps, instead of once.
    """

    name: str
    title: str
    unit: str
    source: str
    assumptions: tuple[str, ...] = ()
    spiking: Mapping[str, float] = field(default_factory=dict)
    quantized: Mapping[str, float] = field(default_factory=dict)
    float: Mapping[str, float] = field(default_factory=dict)
    image_every_step: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}


def list_energy_models() -> list[str]:
    """Names of the models in the package: "operations", which has no prices, first."""
    names = [path.stem for path in _FOLDER.glob("*.toml")]
    return sorted(names, key=lambda name: (name != "operations", [part.zfill(20) for part in name.split("-")]))


def load_energy_model(name: str | Path) -> EnergyModel:
    """A model of the package by name, or of a TOML file.

    Raises:
        ConfigError: unknown name; a file that cannot be read, is not TOML, lacks a field, or has an unknown one or a price that
            is not a number of 0 or more.
    """
    path = Path(name)
    if path.suffix != ".toml":
        if str(name) not in list_energy_models():
            raise ConfigError(unknown("energy model", str(name), list_energy_models()) + ", or a file ending in .toml")
        path = _FOLDER / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    return _checked(values, path)


def _checked(values: dict[str, Any], path: Path) -> EnergyModel:
    texts, known = ("title", "unit", "source"), [f for f in EnergyModel.__dataclass_fields__ if f != "name"]
    for key in values:
        if key not in known:
            raise ConfigError(f"{path}: {unknown('key', key, known)}")
    for key in (*texts, "spiking", "quantized"):
        if key not in values:
            raise ConfigError(f"{path}: {key} is missing; see {_FOLDER.name}/operations.toml in the package for an example")
    for key in texts:
        if not isinstance(values[key], str):
            raise ConfigError(f"{path}: {key}={shown(values[key])} must be text")
    lines = values.get("assumptions", [])
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ConfigError(f"{path}: assumptions={shown(lines)} must be a list of texts")
    if not isinstance(values.get("image_every_step", False), bool):
        raise ConfigError(f"{path}: image_every_step={shown(values['image_every_step'])} must be true or false")
    prices = {form: _prices(values.get(form, {}), form, path) for form in FORMS}
    return EnergyModel(
        path.stem, values["title"], values["unit"], values["source"], tuple(lines),
        prices["spiking"], prices["quantized"], prices["float"], values.get("image_every_step", False),
    )  # fmt: skip


def _prices(table: Any, form: str, path: Path) -> dict[str, float]:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {form}={shown(table)} must be a table of prices")
    for key, price in table.items():
        if key not in FORMS[form]:
            raise ConfigError(f"{path}: {unknown(f'operation of {form}', key, FORMS[form])}")
        if type(price) not in (int, float) or not 0 <= price < float("inf"):
            raise ConfigError(f"{path}: {form}.{key}={shown(price)} must be a number of 0 or more")
    return {key: float(price) for key, price in table.items()}
