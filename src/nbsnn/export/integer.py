"""Integer networks: numbers in safetensors, the program in a header; `IntegerNetwork.load` reads them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from nbsnn import outputs
from nbsnn.export.registry import Exporter, ExportOptions, register
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.storage import save_program

_ORIGIN = ("model", "recipe", "metrics", "source")


def _write(path: Path, network: IntegerNetwork, options: ExportOptions) -> None:
    program = network.program
    save_program(path, replace(program, origin=program.origin | origin_of(options)))


def origin_of(options: ExportOptions) -> dict[str, Any]:
    """The source of an integer network as plain values, for its file."""
    return {key: options.origin[key] for key in _ORIGIN if options.origin and key in options.origin}


EXPORTER = register(Exporter("integer", outputs.INTEGER, ("integer",), _write))
