"""Convert a quantized network to an integer one: trace it, then round gains to integers, with a check for overflow."""

import logging
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.errors import ConfigError, LoweringError
from nbsnn.finite import check_network
from nbsnn.inputs import as_images, to_network
from nbsnn.integer.affine import Affine
from nbsnn.integer.arrangement import arranged
from nbsnn.integer.bounds import MOST_IMAGE_SUMS
from nbsnn.integer.description import describe_units
from nbsnn.integer.fixedpoint import FEW_BITS, Setting, integer_head, integer_unit
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.nodes import IMAGE, Node, Pixels, Resample, Unit
from nbsnn.integer.pixels import LARGEST_PIXEL, pixel_grid
from nbsnn.integer.program import Program, constant_values, step_sizes
from nbsnn.integer.readout import Output, Part, Readout
from nbsnn.integer.trace import Trace, trace
from nbsnn.precision import full_float32
from nbsnn.quant.audit import audit
from nbsnn.quant.layers import quantized_once
from nbsnn.quant.plans import read_plan
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.wrappers import as_network, copied

logger = logging.getLogger(__name__)


@checked_arguments
@full_float32()
@torch.inference_mode(mode=False)  # its tensors have no version counter
def lower(
    quantized: nn.Module,
    example: Tensor,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    float_weight_bits: int = 8,
    membrane_bits: int = 32,
) -> IntegerNetwork:
    """The integer network of a quantized one, as a new object on the CPU; the source does not change.

    Args:
        quantized: result of `nbsnn.quantize`, on any device, for which `nbsnn.to_spiking` works.
        example: [B, C, H, W] normalized images; the first one is traced through the network.
        mean, std: [C] of the normalization, in units of the full range: with them the network also takes 8-bit images.
        float_weight_bits: 8 or 16, for weights that the quantized network leaves in float; rounded per output channel.
        membrane_bits: 32, or 64 for multipliers and images with more bits: the counts are then those of the quantized network
            in float64, but for a few of many millions. With 32, and in float32, rounding changes some, and in a network of
            many layers these change others.
    Raises:
        ConversionError: spikes cannot represent the network.
        LoweringError: an operation has no integer form, sums could overflow, or values are not finite; names the layer and the
            remedy.
    """
    if float_weight_bits not in (8, 16):
        raise ConfigError(f"float_weight_bits={float_weight_bits}: choose 8 or 16")
    if membrane_bits not in (32, 64):
        raise ConfigError(f"membrane_bits={membrane_bits}: choose 32 or 64")
    seen = traced(quantized, example)
    timesteps = max(firing.levels for firing in seen.firings)
    forms, readout = read_out(seen)
    most = 0.0
    if membrane_bits == 64:
        most = min(LARGEST_PIXEL, MOST_IMAGE_SUMS / 2 / _image_load(seen, forms, float_weight_bits))
    pixels = pixel_grid(seen.values.shapes[IMAGE], mean, std, most=most)
    setting = Setting(
        timesteps, pixels.fraction_bits, seen.values.shapes,
        sizes=dict.fromkeys((f.name for f in seen.firings), 1) | step_sizes(seen.values.nodes, pixels),
        constant=constant_values(seen.values.nodes), float_bits=float_weight_bits, membrane_bits=membrane_bits,
        mapped=_mapped(seen.values.nodes),
        maps={node.name: node for node in seen.values.nodes if isinstance(node, Resample)},
    )  # fmt: skip
    nodes: dict[str, Node] = {firing.name: integer_unit(firing, setting) for firing in seen.firings}
    nodes |= {node.name: node for node in seen.values.nodes}
    head, *more = (integer_head(form, setting) for form in forms)
    sources = dict.fromkeys(source for each in (head, *more) for source in each.sources)
    notes = tuple(dict.fromkeys(setting.notes))
    program = Program(timesteps, pixels, _in_order(sources, nodes), head, notes, more=tuple(more), readout=readout)
    for row in describe_units(program):
        if row.smallest_multiplier is not None and row.smallest_multiplier < 2**FEW_BITS:
            logger.warning(
                "%s: smallest multiplier %d is below 2^%d; its gain is coarse%s",
                row.name, row.smallest_multiplier, FEW_BITS, "" if row.wide else ": membrane_bits=64 gives it more bits",
            )  # fmt: skip
    return IntegerNetwork(program)


@full_float32()
@torch.inference_mode(mode=False)
def traced(quantized: nn.Module, example: Tensor) -> Trace:
    """The affine functions between the activations of a quantized network, which does not change.

    Args:
        quantized, example: as for `lower`.
    Raises:
        ConversionError, LoweringError: as by `lower`.
    """
    network = as_network(quantized, LoweringError)
    if isinstance(network, SpikingNetwork):
        raise LoweringError("the network is spiking already; lower the quantized network that it was made from")
    if not read_plan(network):
        raise LoweringError("the network is not quantized; call nbsnn.quantize first")
    example = as_images(example, "example", network=network, finite=True, error=LoweringError)
    check_network(network, LoweringError)
    for name, parameter in network.named_parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise LoweringError(f"{name} has type {parameter.dtype}, too coarse for integers; call .float() first")
    network = copied(network).eval()
    first = to_network(example[:1].detach(), network)
    with quantized_once(network):
        audit(network, first)
    return trace(network.cpu(), first.cpu())  # the numbers are the same on any device


def read_out(seen: Trace) -> tuple[list[Affine], Readout | None]:
    """The affine functions that are heads, and the readout unless the result is the only head's."""
    first = seen.outputs[0]
    if isinstance(first, Affine) and seen.tree == 0:
        return [first], None
    whole = [arranged(form) for form in seen.outputs]
    forms = list({id(piece.form): piece.form for form in whole for piece in form.pieces}.values())
    at = {id(form): number for number, form in enumerate(forms)}
    outputs = [
        Output(
            form.shape,
            tuple(
                Part(at[id(p.form)], p.index.flatten().to(torch.int32), None if p.gain is None else p.gain.flatten())
                for p in form.pieces
            ),
            form.shift.flatten() if bool(form.shift.any()) else None,
        )
        for form in whole
    ]
    return forms, Readout(tuple(outputs), seen.tree)


def _image_load(seen: Trace, heads: Iterable[Affine], float_bits: int) -> float:
    """A bound on Σ|integer weight| of any sum over the image, at least 1."""
    nodes = seen.values.nodes
    sizes, constant = step_sizes(nodes, Pixels(seen.values.shapes[IMAGE], 0, -1, 1)), constant_values(nodes)
    most = 1.0
    for term in (term for form in (*(f.current for f in seen.firings), *heads) for term in form.terms):
        if term.value in constant and term.synapse is not None:
            rows = term.synapse.weight.abs().flatten(1)
            load = float(rows.sum(1).max()) if term.synapse.integral else rows.shape[1] * 2.0 ** (float_bits - 1)
            most = max(most, load * sizes[term.value] * (1 if term.after is None else term.after.largest))
    return most


def _mapped(nodes: Iterable[Node]) -> frozenset[str]:
    """Values that are sums with different weights, or pooled or flattened of such."""
    known: set[str] = set()
    for node in nodes:
        if not isinstance(node, Unit) and ((isinstance(node, Resample) and node.map.largest > 1) or node.source in known):
            known.add(node.name)
    return frozenset(known)


def _in_order(wanted: Iterable[str], nodes: dict[str, Node]) -> tuple[Node, ...]:
    """The nodes that the head needs, sources first."""
    order: dict[str, Node] = {}
    stack = [(name, False) for name in reversed(list(wanted))]
    while stack:
        name, ready = stack.pop()
        if name == IMAGE or name in order:
            continue
        if ready:
            order[name] = nodes[name]
        else:
            stack.append((name, True))
            stack += [(source, False) for source in reversed(nodes[name].sources)]
    return tuple(order.values())
