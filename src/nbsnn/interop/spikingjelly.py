"""A spiking network with SpikingJelly's neurons: the same spikes, in their framework.

SpikingJelly (Fang et al., "SpikingJelly: An open-source machine learning infrastructure platform for spike-based intelligence",
Science Advances 9, 2023) is used as installed; nothing of it is copied.
"""

from typing import Any

from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.errors import ConversionError, MissingDependencyError
from nbsnn.inputs import as_images, to_network
from nbsnn.quant.layers import quantized_once
from nbsnn.spiking.call import Call, running
from nbsnn.spiking.functional import fold, unfold
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.spiking.neuron import IFNeuron
from nbsnn.structure import map_outputs
from nbsnn.surgery import replace_modules_
from nbsnn.wrappers import copied


@checked_arguments
def to_spikingjelly(spiking: SpikingNetwork) -> nn.Module:
    """A copy of a spiking network whose neurons are SpikingJelly's `IFNode`, in multi-step mode.

    Called on images [B, C, H, W], it returns what `spiking` does, the outputs' mean over T steps, and fires the same spikes in
    every step. Each call begins anew. With gradients, SpikingJelly's surrogate derivative is used; `v_threshold` is then a
    constant, so thresholds do not learn.

    Args:
        spiking: with unsigned neurons and the schedule "fixed", as IFNode knows neither negative spikes nor other schedules.
    Raises:
        ConversionError: other neurons or another schedule.
        MissingDependencyError: SpikingJelly is not installed.
    """
    try:
        from spikingjelly.activation_based import neuron as theirs
    except ImportError:
        raise MissingDependencyError("spikingjelly", extra="interop", purpose="Converting to its neurons") from None
    if (spiking.neuron, spiking.schedule) != ("unsigned", "fixed"):
        raise ConversionError(
            f"SpikingJelly's IFNode has no counterpart of neuron={spiking.neuron!r} with schedule={spiking.schedule!r}; "
            "convert with nbsnn.to_spiking(..., neuron='unsigned', schedule='fixed')"
        )
    network = copied(spiking.network)
    ours = {m for m in network.modules() if isinstance(m, IFNeuron)}
    layers: dict[nn.Module, nn.Module] = {
        m: SpikingJellyNeuron(theirs.IFNode, float(m.height().detach()), m.timesteps) for m in ours
    }
    return SpikingJellyNetwork(replace_modules_(network, layers), spiking.timesteps, spiking.image_shape).eval()


class SpikingJellyNeuron(nn.Module):
    """One layer of neurons: current in, spikes · height out, time folded into the batch.

    Attributes:
        node: SpikingJelly's, which may be configured further, such as with another surrogate function.
        height: of a spike, which is also the firing threshold.
        timesteps: T.
    """

    def __init__(self, node: Any, height: float, timesteps: int) -> None:
        super().__init__()
        self.node = node(v_threshold=height, v_reset=None, step_mode="m")  # reset by subtraction
        self.node.set_reset_value("v", height / 2)  # firing rounds to nearest
        self.height, self.timesteps = height, timesteps

    def forward(self, current: Tensor) -> Tensor:
        self.node.reset()
        spikes: Tensor = self.node(unfold(current, self.timesteps))
        return fold(spikes * self.height)


class SpikingJellyNetwork(nn.Module):
    """Result of `to_spikingjelly`.

    Attributes:
        network: the module tree.
        timesteps: T.
        image_shape: (C, H, W).
    """

    def __init__(self, network: nn.Module, timesteps: int, image_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.timesteps, self.image_shape = network, timesteps, image_shape

    def train(self, mode: bool = True) -> "SpikingJellyNetwork":
        """Set the flag of this object and its neurons; the layers stay in evaluation mode, as those of `SpikingNetwork`."""
        super().train(mode)
        for module in self.network.modules():
            module.training = mode and isinstance(module, SpikingJellyNeuron)
        return self

    def forward(self, images: Tensor) -> Any:
        images = as_images(images, ranks=(len(self.image_shape) + 1,), channels=self.image_shape[0])
        images = to_network(images, self.network)
        folded = fold(images.unsqueeze(0).expand(self.timesteps, *images.shape))
        with quantized_once(self.network), running(Call(self.timesteps)):
            currents = self.network(folded)
        return map_outputs(lambda current: unfold(current, self.timesteps).sum(0) / self.timesteps, currents)
