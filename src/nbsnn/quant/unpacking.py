"""Make packed networks trainable: float weights that are quantized to the packed values."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from nbsnn.errors import QuantizationError
from nbsnn.quant.layers import WeightQuantizer
from nbsnn.wrappers import as_network, copied


@torch.inference_mode(mode=False)  # within inference mode, parameters of the result could never be trained
def unpack(network: nn.Module) -> nn.Module:
    """A packed network with trainable weights, as a new object; its logits are equal bit for bit.

    Each layer gets a float weight that its format quantizes to the packed values. Each value is inside the cell of its level,
    so an optimizer can train it as usual.

    Args:
        network: quantized or spiking, from `load_checkpoint`; layers whose weights are not fixed are copied unchanged.
    Raises:
        QuantizationError: the network has no fixed weights, or no float weight is quantized to its values.
    """
    bare = as_network(network, QuantizationError)
    if not has_fixed_weights(bare):
        raise QuantizationError("the network is not a packed one: its weights train already; use it as it is")
    result = copied(bare)
    for name, layer in result.named_modules():
        if isinstance(layer, WeightQuantizer) and layer.fixed:
            _free_(name, layer)
    return result


def has_fixed_weights(network: nn.Module) -> bool:
    """Whether a layer's weight holds quantized values, as in a packed network."""
    return any(isinstance(module, WeightQuantizer) and module.fixed for module in network.modules())


@torch.no_grad()
def _free_(name: str, layer: WeightQuantizer) -> None:
    trained = replace(layer.format, fixed=False)
    values, unit = layer.by_output(layer.weight.detach()), layer.unit()
    found = trained.float_weight(values, unit)
    if found is None or not _equal(trained.quantize(*found), values):
        raise QuantizationError(
            f"{name} holds values that no float weight is quantized to ({trained.label}, {trained.bits} bits); "
            "start from the checkpoint that it was packed from"
        )
    weight, scale = found
    layer.format = trained
    layer.weight = nn.Parameter(layer.as_stored(weight))
    layer.weight_scale = None if scale is None else nn.Parameter(scale)


def _equal(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first, second) and torch.equal(first.signbit(), second.signbit())
