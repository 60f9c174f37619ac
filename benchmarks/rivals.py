"""Other software for these architectures: torch's dense int8, and SpikingJelly's neurons. For `benchmarks/inference.py`."""

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

PEERS = ("spikingjelly",)


def dense_int8(plain: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """The float net after torch's post-training quantization: 8-bit weights and activations, dense, batch norms folded.

    One pass over the images, as `counts` is; a spiking network run this way would take T.
    """
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    engine = "x86" if "x86" in torch.backends.quantized.supported_engines else "qnnpack"
    torch.backends.quantized.engine = engine  # used both to pack the weights and to run them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its retirement
        observed = prepare_fx(copy.deepcopy(plain).eval(), get_default_qconfig_mapping(engine), (images,))
        observed(images)
        return convert_fx(observed)  # type: ignore[no-any-return]


def compiled(int8: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The int8 net under torch.compile, if torch can compile it."""
    fast = torch.compile(int8)
    try:
        fast(images)
    except Exception:
        return None
    return fast  # type: ignore[return-value]


def missing(peers: Iterable[str]) -> list[str]:
    """Those of the peers that are not installed."""
    return [peer for peer in peers if importlib.util.find_spec(peer) is None]


class _Steps(nn.Module):
    """A multi-step neuron between layers with steps folded into the batch."""

    def __init__(self, neuron: nn.Module, timesteps: int) -> None:
        super().__init__()
        self.neuron, self.timesteps = neuron, timesteps

    def forward(self, current: Tensor) -> Tensor:
        return self.neuron(current.unflatten(0, (self.timesteps, -1))).flatten(0, 1)  # type: ignore[no-any-return]


def spikingjelly(plain: nn.Module, timesteps: int) -> Callable[[Tensor], Tensor]:
    """The same layers with SpikingJelly's integrate-and-fire neurons (reset by subtraction, multi-step) for each ReLU.

    Thresholds are 1 and membranes start at 0, so only its time is meaningful.
    """
    from spikingjelly.activation_based import functional, neuron

    net = copy.deepcopy(plain).eval()
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU):
                fires = neuron.IFNode(v_threshold=1.0, v_reset=None, step_mode="m")
                setattr(module, name, _Steps(fires, timesteps))

    def run(images: Tensor) -> Tensor:
        functional.reset_net(net)
        steps = images.repeat(timesteps, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        return net(steps).unflatten(0, (timesteps, -1)).mean(0)  # type: ignore[no-any-return]

    return run
