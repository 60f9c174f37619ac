"""Quantized weights as codes of b bits each, eight bits to the byte: what a network takes on disk.

An inner (APoT) weight's code is the index of its level, with the sign as the highest bit; an edge weight's code is its
whole number of steps. Unpacking repeats the quantizer's last multiplication, so that the weights come back bit for bit.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nbsnn.errors import QuantizationError
from nbsnn.finite import check_finite, check_network
from nbsnn.quant.functional import apot_levels, apot_numerators, edge_step
from nbsnn.quant.layers import WeightQuantizer, at_least

CODES, STEP = ".weight.codes", ".weight.step"  # tensors of a packed layer beside its bias and scale


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Whole numbers in [0, 2^bits) of any shape → uint8 [⌈n·bits/8⌉], lowest bit first."""
    planes = (codes.flatten().to(torch.int64)[:, None] >> torch.arange(bits)) & 1
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
    """The state of a quantized network with codes in the place of its quantized weights.

    Raises:
        QuantizationError: the network is packed already, or an edge weight has no 8-bit code, or numbers are not finite.
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
            values = layer.quantized_weight()
        check_finite(f"the quantized {name}.weight", values, QuantizationError)
        if layer.weight_scale is not None:
            numerators = torch.tensor(apot_numerators(layer.weight_bits))
            whole = (values.abs() / at_least(layer.weight_scale.detach()) * numerators[-1]).round().long()
            codes = torch.searchsorted(numerators, whole) + (torch.signbit(values) * 2 ** (layer.weight_bits - 1))
        else:
            step = edge_step(layer.weight.detach(), bits=layer.weight_bits, edge_range=layer.edge_range or "max_abs")
            half = 2 ** (layer.weight_bits - 1)
            codes = (values / step).round().long() + half
            if int(codes.min()) < 0 or int(codes.max()) >= 2 * half:
                raise QuantizationError(
                    f"{name}: edge_range='max' gives weights beyond {layer.weight_bits} bits (the least weight is larger than "
                    "the greatest); train with edge_range='max_abs' to pack"
                )
            state[name + STEP] = step
        state[name + CODES] = pack_bits(codes, layer.weight_bits)
    return state


def unpack_state(state: Mapping[str, Tensor], quantized: nn.Module) -> dict[str, Tensor]:
    """A state dict for `quantized`, whose layers hold their weights fixed (`LayerFormat.fixed`), from what `pack_state` gave.

    Raises:
        ValueError: codes are missing or of another length; names the layer.
    """
    result = {key: value for key, value in state.items() if not key.endswith((CODES, STEP))}
    for name, layer in quantized.named_modules():
        if not isinstance(layer, WeightQuantizer):
            continue
        shape, bits = layer.weight.shape, layer.weight_bits
        if not layer.fixed:
            raise ValueError(f"{name} holds codes, but its plan does not say that its weight is fixed")
        try:
            codes = unpack_bits(state[name + CODES], bits, shape.numel()).view(shape)
            factor = _factor(state, f"{name}.weight_scale" if layer.weight_scale is not None else name + STEP)
            factor = factor if layer.weight_scale is None else at_least(factor)
        except KeyError as error:
            raise ValueError(f"missing {error.args[0]}") from None
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        half = 2 ** (bits - 1)
        if layer.weight_scale is not None:
            sign = torch.where(codes >= half, -1.0, 1.0).to(factor)
            values = apot_levels(bits).to(factor)[codes % half].copysign(sign) * factor
        else:
            values = (codes - half).to(factor) * factor
        result[f"{name}.weight"] = values
    return result


def _factor(state: Mapping[str, Tensor], key: str) -> Tensor:
    """What a layer's whole numbers are multiplied by: one floating number, not a tensor that would be broadcast."""
    factor = state[key]
    if factor.dim() or not factor.is_floating_point() or not bool(factor.isfinite()):
        raise ValueError(f"{key} is not one finite number")
    return factor
