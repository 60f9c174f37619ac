"""Exporters by name: each writes a network to a file in a format of its own."""

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
    """One format that networks are written in.

    Attributes:
        name: what users call it.
        kind: of what is written, for messages: "a packed network".
        form: of the networks that it takes; `nbsnn.lower` makes an integer one of a quantized one.
        write: (path, network, origin) → None; writes the whole file or none of it. `origin` is the header of the checkpoint
            that the network came from, None if it is not known.
        suffix: of the file.
    """

    name: str
    kind: str
    form: Literal["float", "quantized", "spiking", "integer"]
    write: Callable[[Path, Any, Mapping[str, Any] | None], None]
    suffix: str = ".safetensors"


EXPORTERS: dict[str, Exporter] = {}


def register(exporter: Exporter) -> Exporter:
    """Make an exporter known under its name, and return it.

    Raises:
        ConfigError: the name is taken.
    """
    return add_named(EXPORTERS, "exporter", exporter.name, exporter)


def export(
    path: str | Path, network: nn.Module | IntegerNetwork, exporter: str, *, origin: Mapping[str, Any] | None = None
) -> int:
    """Write a network in the format of an exporter.

    Args:
        path: with the exporter's suffix.
        network: of the form that the exporter takes.
        exporter: one of `EXPORTERS`.
        origin: header of the checkpoint that the network came from, as far as the format keeps it.
    Returns:
        Bytes of the file.
    Raises:
        ConfigError: unknown exporter, or a network of another form or a file of another suffix than it takes.
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
