"""Exporters by name: each writes a network to a file in one format."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from nbsnn.checkpoint import form_of
from nbsnn.errors import ConfigError, unknown
from nbsnn.integer.network import IntegerNetwork
from nbsnn.naming import add_named


@dataclass(frozen=True)
class Exporter:
    """A file format for networks.

    Attributes:
        name: as in `export`.
        kind: of the file, for messages: "a packed network".
        form: of the networks that it takes; `nbsnn.lower` converts a quantized one to an integer one.
        write: (path, network, origin) → None; writes the file atomically. `origin` is the header of the checkpoint of the
            network, None if unknown.
        suffix: of the file.
    """

    name: str
    kind: str
    form: Literal["float", "quantized", "spiking", "integer"]
    write: Callable[[Path, Any, Mapping[str, Any] | None], None]
    suffix: str = ".safetensors"


EXPORTERS: dict[str, Exporter] = {}


def register(exporter: Exporter) -> Exporter:
    """Register an exporter under its name, and return it.

    Raises:
        ConfigError: the name is taken.
    """
    return add_named(EXPORTERS, "exporter", exporter.name, exporter)


def export(
    path: str | Path, network: nn.Module | IntegerNetwork, exporter: str, *, origin: Mapping[str, Any] | None = None
) -> int:
    """Write a network in the format of an exporter.

    Args:
        path: the file, with the exporter's suffix.
        network: of the form that the exporter takes.
        exporter: one of `EXPORTERS`.
        origin: header of the checkpoint of the network, for formats that store it.
    Returns:
        Bytes of the file.
    Raises:
        ConfigError: unknown exporter, a network of another form, or a file with another suffix.
    """
    if exporter not in EXPORTERS:
        raise ConfigError(unknown("exporter", exporter, EXPORTERS))
    chosen, path = EXPORTERS[exporter], Path(path)
    if path.suffix != chosen.suffix:
        raise ConfigError(f"{path}: {chosen.kind} is a {chosen.suffix} file")
    if (form := form_of(network)) != chosen.form:
        remedy = {"integer": "nbsnn.lower", "spiking": "nbsnn.to_spiking"}.get(chosen.form, "nbsnn.quantize")
        raise ConfigError(f"{chosen.kind} is written from the {chosen.form} form, and this network is {form}; see {remedy}")
    chosen.write(path, network, origin)
    return path.stat().st_size
