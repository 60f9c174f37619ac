"""Run a NIR file of the profile "if" in one simulator: `interop_worker.py SIMULATOR FOLDER patched|"as imported"`.

FOLDER holds net.safetensors, an integer network, and images.pt; counts and logits are written to found.pt. The simulator's own
environment runs this, and writes the NIR file with its version of nir, as sinabs reads no file of nir 1.0.6 or newer.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nbsnn
from nbsnn.interop import patch


def _spikingjelly(graph: Any, images: Tensor) -> nn.Module:
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    return import_from_nir(graph, dt=1.0, dtype=images.dtype)


def _snntorch(graph: Any, images: Tensor) -> nn.Module:
    from snntorch.import_nir import import_from_nir

    return import_from_nir(graph)


def _norse(graph: Any, images: Tensor) -> nn.Module:
    from norse.torch import from_nir

    return from_nir(graph, dt=1.0)


def _sinabs(graph: Any, images: Tensor) -> nn.Module:
    from sinabs.nir import from_nir

    return from_nir(graph, batch_size=len(images))


# Importer, and the type that it computes in.
SIMULATORS: dict[str, tuple[Callable[[Any, Tensor], nn.Module], torch.dtype]] = {
    "spikingjelly": (_spikingjelly, torch.float64),
    "snntorch": (_snntorch, torch.float32),
    "norse": (_norse, torch.float32),
    "sinabs": (_sinabs, torch.float32),
}


def run(simulator: str, network: nbsnn.IntegerNetwork, images: Tensor, path: Path, *, patched: bool) -> dict[str, Any]:
    """Counts of each layer and logits of the simulator's network on images [B, C, H, W]."""
    import nir

    T = network.timesteps
    nbsnn.export_nir(network, path, "if-charged" if patched else "if")
    graph = nir.read(str(path))
    fires = sorted(key for key, node in graph.nodes.items() if isinstance(node, nir.IF))  # in the order of our layers
    layers = dict(zip(fires, (unit.name for unit in network.program.units), strict=True))
    make, dtype = SIMULATORS[simulator]
    images = images.to(dtype)
    module = make(graph, images)
    if patched:
        patch(module)
    folded = T if simulator == "sinabs" else 1  # sinabs takes all steps at once, [B · T, ...]
    counts: dict[str, Tensor] = {}
    modules = dict(module.named_modules())

    def add(layer: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _given: Any, out: Any) -> None:
            spikes = _summed(out, folded).int()
            counts[layer] = counts[layer] + spikes if layer in counts else spikes

        return hook

    for name, layer in layers.items():
        modules[name].register_forward_hook(add(layer))
    total, state = torch.zeros(()), None
    with torch.no_grad():
        for _ in range(T // folded):
            out = module(images.repeat_interleave(folded, 0)) if state is None else module(images, state)
            state = out[1] if isinstance(out, tuple) else None
            total = total + _summed(out, folded)
    return {"counts": counts, "logits": total / T}


def _summed(out: Any, steps: int) -> Tensor:
    """The sum over steps of a module's output [B · steps, ...], its state left out."""
    values: Tensor = out[0] if isinstance(out, tuple) else out
    return values.unflatten(0, (-1, steps)).sum(1)


def main() -> None:
    """Run what the command line names."""
    warnings.simplefilter("ignore")
    simulator, folder, form = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    network = nbsnn.IntegerNetwork.load(folder / "net.safetensors")
    images = torch.load(folder / "images.pt", weights_only=True)
    torch.save(run(simulator, network, images, folder / "net.nir", patched=form == "patched"), folder / "found.pt")


if __name__ == "__main__":
    main()
