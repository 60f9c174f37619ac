"""Run our networks in other simulators: NIR graphs in nirtorch, SpikingJelly's neurons, and importers that reset hard."""

from nbsnn.interop.nirtorch import NirRun, nirtorch_map, run_nir

__all__ = ["NirRun", "nirtorch_map", "run_nir"]
