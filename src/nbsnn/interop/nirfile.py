"""NIR files: the package that writes and reads them, imported here only, and the names of our layers in them."""

import re
from pathlib import Path
from typing import Any

from nbsnn.errors import MissingDependencyError
from nbsnn.files import write_atomically


def nir_package() -> Any:
    """The package nir.

    Raises:
        MissingDependencyError: with the install command.
    """
    try:
        import nir
    except ImportError:
        raise MissingDependencyError("nir", extra="nir", purpose="The NIR format") from None
    return nir


def node_name(layer: str) -> str:
    """The name in a NIR graph of one of our layers: "stage1.0.first.act" → "stage1_0_first_act".

    Executors make attributes of these names, so they consist of letters, digits and underscores.
    """
    name = re.sub(r"\W", "_", layer, flags=re.ASCII)
    return name if name[:1].isalpha() else f"n{name}"


def write_nir(path: Path, graph: Any) -> None:
    """Write a `nir.NIRGraph` to an HDF5 file, atomically.

    Raises:
        CheckpointError: the file cannot be written.
    """
    nir = nir_package()
    write_atomically(path, lambda part: nir.write(str(part), graph))
