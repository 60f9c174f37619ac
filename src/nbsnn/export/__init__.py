"""Export networks to formats by name: those of this folder, and registered ones."""

from nbsnn.export import c, dump, integer, nir, onnx, packed  # noqa: F401  (each registers its exporter)
from nbsnn.export.registry import (
    EXPORTERS,
    Export,
    Exporter,
    ExportOptions,
    Written,
    check_files,
    check_profile,
    export,
    exporter_named,
    planned,
    register,
)

__all__ = [
    "EXPORTERS",
    "Export",
    "ExportOptions",
    "Exporter",
    "Written",
    "check_files",
    "check_profile",
    "export",
    "exporter_named",
    "planned",
    "register",
]
