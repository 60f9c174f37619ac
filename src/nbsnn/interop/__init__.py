"""Run our networks in other simulators: NIR graphs in nirtorch, SpikingJelly's neurons, and what importers made of ours."""

from nbsnn.interop.nirtorch import NirRun, nirtorch_map, run_nir
from nbsnn.interop.patching import patch
from nbsnn.interop.spikingjelly import to_spikingjelly

__all__ = ["NirRun", "nirtorch_map", "patch", "run_nir", "to_spikingjelly"]
