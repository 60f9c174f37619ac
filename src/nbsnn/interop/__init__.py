"""Run our networks in other simulators: NIR graphs in nirtorch, and neurons that other importers made, with our reset."""

from nbsnn.interop.nirtorch import NirRun, nirtorch_map, run_nir
from nbsnn.interop.patching import patch

__all__ = ["NirRun", "nirtorch_map", "patch", "run_nir"]
