"""Quantized weights as codes of b bits, packed into bytes, for files.

The layer's weight format defines the codes. Their unit is stored too, in `weight_scale` if the layer has one. Unpacking repeats
the quantizer's last multiplication, so the weights are restored bit for bit.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nbsnn.errors import QuantizationError
from nbsnn.finite import check_finite, check_network
from nbsnn.quant.layers import WeightQuantizer
from nbsnn.statedict import FLOATS

CODES, STEP, SCALE = ".weight.codes", ".weight.step", ".weight_scale"  # tensors of a packed layer besides its bias


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Integers in [0, 2^bits) of any shape → uint8 [⌈n·bits/8⌉], lowest bit first."""
    planes = (codes.flatten().to("cpu", torch.int64)[:, None] >> torch.arange(bits)) & 1
    stream = planes.flatten()
    stream = torch.nn.functional.pad(stream, (0, -len(stream) % 8)).view(-1, 8)
    return (stream << torch.arange(8)).sum(1).to(torch.uint8)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack_bits`: int64 [count].

    Raises:
        ValueError: there are not that many codes.
    """
    if packed.dtype != torch.uint8 or packed.shape != (-(-count * bits // 8),):
        raise ValueError(f"{packed.numel()} bytes do not hold {count} codes of {bits} bits")
    stream = ((packed.to(torch.int64)[:, None] >> torch.arange(8)) & 1).flatten()[: count * bits]
    return (stream.view(count, bits) << torch.arange(bits)).sum(1)


def pack_state(quantized: nn.Module) -> dict[str, Tensor]:
    """The state of a quantized network with codes instead of its quantized weights.

    Raises:
        QuantizationError: the network is already packed, a weight has no code, or values are not finite.
    """
    check_network(quantized, QuantizationError)
    state = dict(quantized.state_dict())
    for name, layer in quantized.named_modules():
        if not isinstance(layer, WeightQuantizer):
            continue
        if layer.fixed:
            raise QuantizationError("the network was packed before; copy its file instead")
        del state[f"{name}.weight"]
        with torch.no_grad():
            values = layer.by_output(layer.quantized_weight())
        check_finite(f"the quantized {name}.weight", values, QuantizationError)
        unit = layer.unit()
        try:
            codes = layer.format.codes(values, unit)
        except ValueError as error:
            raise QuantizationError(f"{name}: {error}") from None
        state[name + (STEP if layer.weight_scale is None else SCALE)] = unit
        state[name + CODES] = pack_bits(codes, layer.weight_bits)
    return state


def unpack_state(state: Mapping[str, Tensor], quantized: nn.Module) -> dict[str, Tensor]:
    """A state dict for `quantized`, whose layers have fixed weights (`WeightFormat.fixed`), from the result of `pack_state`.

    Raises:
        ValueError: codes are missing or of another length; names the layer.
    """
    result = {key: value for key, value in state.items() if not key.endswith((CODES, STEP))}
    for name, layer in quantized.named_modules():
        if not isinstance(layer, WeightQuantizer):
            continue
        shape, bits = layer.by_output(layer.weight).shape, layer.weight_bits
        if not layer.fixed:
            raise ValueError(f"{name} holds codes, but its plan does not say that its weight is fixed")
        try:
            codes = unpack_bits(state[name + CODES], bits, shape.numel()).view(shape)
            unit = _unit(state, name + (STEP if layer.weight_scale is None else SCALE), layer)
        except KeyError as error:
            raise ValueError(f"missing {error.args[0]}") from None
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        result[f"{name}.weight"] = layer.as_stored(layer.format.values(codes, unit))
    return result


def _unit(state: Mapping[str, Tensor], key: str, layer: WeightQuantizer) -> Tensor:
    """The factor on a layer's codes: one finite number, or one per output channel for formats with `per_channel`."""
    unit = state[key]
    shape = (len(layer.by_output(layer.weight)), *(1 for _ in layer.weight.shape[1:])) if layer.format.per_channel else ()
    if unit.shape != shape or unit.dtype not in FLOATS or not bool(unit.isfinite().all()):
        each = " for each output channel" if layer.format.per_channel else ""
        raise ValueError(f"{key} is not one finite number{each}")
    return unit
