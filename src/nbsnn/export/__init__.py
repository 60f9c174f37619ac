"""Export networks to formats by name: those of this folder, and registered ones."""

from nbsnn.export import integer, packed  # noqa: F401  (each registers its exporter)
from nbsnn.export.registry import EXPORTERS, Exporter, export, register

__all__ = ["EXPORTERS", "Exporter", "export", "register"]
