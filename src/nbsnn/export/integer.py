"""Integer networks: numbers in safetensors, the program in a header; `IntegerNetwork.load` reads them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nbsnn import outputs
from nbsnn.export.registry import Exporter, register
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.storage import save_program


def _write(path: Path, network: IntegerNetwork, origin: Mapping[str, Any] | None) -> None:
    program = network.program
    save_program(path, program if origin is None else replace(program, origin=dict(origin)))


EXPORTER = register(Exporter("integer", outputs.INTEGER, "integer", _write))
