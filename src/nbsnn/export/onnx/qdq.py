"""Quantized networks as ONNX graphs with QuantizeLinear and DequantizeLinear, on the grids of the network.

What lies between two activations is a sum of convolutions, products and skips: batch norms are folded into the scale of the
weights, [1] or [O], and into the bias. Weights are int8 (int16 for the finest levels), and stay in float where the network
leaves them in float. An activation is

    Floor(x · L/θ + ½) · θ/L  →  QuantizeLinear(scale θ/L)  →  Clip(0, L)  →  DequantizeLinear(scale θ/L).

QuantizeLinear alone would round halves to even, and ours go up; after Floor its input is on the grid, where it rounds nothing.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from nbsnn.export.onnx.graph import Array, Graph
from nbsnn.export.onnx.places import Shape, apply_map, as_planes, place_node, place_outputs
from nbsnn.integer.affine import Affine, Synapse, Term
from nbsnn.integer.lower import read_out
from nbsnn.integer.nodes import IMAGE, SumPool
from nbsnn.integer.trace import Firing, Trace
from nbsnn.shapes import per_channel

_NARROW, _WIDE = 127, 2**15 - 1  # the largest weights in int8 and int16


def write_quantized(graph: Graph, seen: Trace) -> list[str]:
    """Append a traced quantized network to a graph; the names of its outputs."""
    writer = _Writer(graph, seen)
    forms, readout = read_out(seen)
    used = _used(seen, forms)
    for firing in seen.firings:
        if firing.name in used:
            writer.activation(firing)
    names = ["head" if len(forms) == 1 else f"head.{i}" for i in range(len(forms))]
    heads = [writer.affine(form, name) for form, name in zip(forms, names, strict=True)]
    return place_outputs(graph, readout, heads, [form.shape for form in forms], np.float32)


def _used(seen: Trace, forms: Iterable[Affine]) -> set[str]:
    """The values that the outputs need."""
    sources = {node.name: {node.source} for node in seen.values.nodes}
    sources |= {firing.name: {term.value for term in firing.current.terms} for firing in seen.firings}
    used, waiting = set[str](), [term.value for form in forms for term in form.terms]
    while waiting:
        if (name := waiting.pop()) not in used:
            used.add(name)
            waiting += sources.get(name, ())
    return used


class _Writer:
    """Appends the values of a traced network.

    Attributes:
        made: value → its name in the graph.
        steps: value → the number that a count of 1 (of the image: 1) is in the graph.
    """

    def __init__(self, graph: Graph, seen: Trace) -> None:
        self.graph, self.shapes = graph, seen.values.shapes
        self.nodes = {node.name: node for node in seen.values.nodes}
        self.made = {IMAGE: graph.input("images", np.float32, self.shapes[IMAGE])}
        self.steps = {IMAGE: 1.0}

    def value(self, name: str) -> str:
        """A value in the graph; pooled and flattened ones are appended when they are first read."""
        if name not in self.made:
            node = self.nodes[name]
            x, shape, self.steps[name] = self.value(node.source), self.shapes[node.source], self.steps[node.source]
            if isinstance(node, SumPool):
                self.steps[name] /= node.kernel[0] * node.kernel[1]
                planes = as_planes(self.graph, x, shape, f"{name}/planes")
                made = self.graph.op(
                    "AveragePool", planes, name=f"{name}/average", kernel_shape=node.kernel, strides=node.stride,
                    pads=(*node.padding, *node.padding), count_include_pad=1,
                )  # fmt: skip
                self.made[name] = made if len(node.shape) == 3 else self.graph.reshape(made, node.shape, name=name)
            else:
                self.made[name] = place_node(self.graph, node, x, shape, np.float32)
        return self.made[name]

    def activation(self, firing: Firing) -> None:
        """Quantize a current; the graph's value is q·θ/L."""
        graph, name, levels = self.graph, firing.name, firing.levels
        step = firing.threshold / levels
        x = self.affine(firing.current, f"{name}/current")
        x = graph.op("Mul", x, graph.constant(levels / firing.threshold, np.float32, f"{name}.per_step"), name=f"{name}/steps")
        x = graph.op(
            "Floor", graph.op("Add", x, graph.constant(0.5, np.float32, "half"), name=f"{name}/half"), name=f"{name}/floor"
        )
        scale, zero = graph.constant(step, np.float32, f"{name}.scale"), graph.constant(0, np.uint8, "zero_point")
        x = graph.op("Mul", x, scale, name=f"{name}/grid")
        x = graph.op("QuantizeLinear", x, scale, zero, name=f"{name}/quantized")
        if levels < 255:
            x = graph.op("Clip", x, zero, graph.constant(levels, np.uint8, f"levels.{levels}"), name=f"{name}/clipped")
        self.made[name] = graph.op("DequantizeLinear", x, scale, zero, name=name)
        self.steps[name] = float(np.float32(step))

    def affine(self, affine: Affine, name: str) -> str:
        """[batch, *shape] float32: the terms, and the bias, in the first convolution or product if it can take it."""
        bias: Array | None = affine.bias.numpy()
        total: str | None = None
        for number, term in enumerate(affine.terms):
            at = f"{name}/term{number}" if len(affine.terms) > 1 else f"{name}/term"
            taken = None if bias is None or bias.ndim > 1 or term.synapse is None or term.after is not None else bias
            part = self._term(term, affine.shape, taken, at)
            bias = bias if taken is None else None
            total = part if total is None else self.graph.op("Add", total, part, name=f"{name}/sum")
        if bias is not None and (total is None or bias.any()):
            placed = bias if bias.ndim == len(affine.shape) else bias.reshape(-1, *(1 for _ in affine.shape[1:]))
            constant = self.graph.constant(placed, np.float32, f"{name}.bias")
            total = constant if total is None else self.graph.op("Add", total, constant, name=f"{name}/biased")
        assert total is not None
        return total

    def _term(self, term: Term, shape: Shape, bias: Array | None, name: str) -> str:
        x, source = self.value(term.value), self.shapes[term.value]
        gain = term.gain / self.steps[term.value]
        if term.synapse is not None:
            made = self._product(x, source, term.chosen(), gain, bias, name)
            if term.after is not None:
                made = apply_map(self.graph, term.after, made, np.float32, name=f"{name}/places")
            flat = len(source) == 1 and len(shape) == 1
            return made if flat or len(shape) == 3 else self.graph.reshape(made, shape, name=f"{name}/shape")
        if not torch.equal(term.take, torch.arange(source[0])):
            x = self.graph.op("Gather", x, self.graph.constant(term.take.clamp_min(0).numpy(), np.int64, f"{name}.take"),
                              name=f"{name}/take", axis=1)  # fmt: skip
            gain = torch.where(term.take >= 0, gain, 0.0)
        if len(source) != len(shape):
            x = self.graph.reshape(x, shape, name=f"{name}/shape")
        factor: Array = gain.numpy().astype(np.float32)
        if (factor == 1).all():
            return x
        factor = factor[:1] if (factor == factor[0]).all() else factor
        placed = factor.reshape(-1, *(1 for _ in shape[1:]))
        return self.graph.op("Mul", x, self.graph.constant(placed, np.float32, f"{name}.gain"), name=f"{name}/scaled")

    def _product(self, x: str, source: Shape, synapse: Synapse, gain: torch.Tensor, bias: Array | None, name: str) -> str:
        """The synapse's convolution or product, times a gain per output channel, plus a bias."""
        graph = self.graph
        rest = () if bias is None else (graph.constant(bias, np.float32, f"{name}.bias"),)
        weight = self._weight(synapse, gain, name)
        if synapse.weight.dim() == 2:
            planes = self.graph.op("Flatten", x, name=f"{name}/flat", axis=1) if len(source) > 1 else x
            made = graph.op("Gemm", planes, weight, *rest, name=name, transB=1)
            return made
        return graph.op(
            "Conv", as_planes(graph, x, source, f"{name}/planes"), weight, *rest, name=name,
            kernel_shape=synapse.weight.shape[2:], strides=synapse.stride, dilations=synapse.dilation, group=synapse.groups,
            pads=(*synapse.padding, *synapse.padding),
        )  # fmt: skip

    def _weight(self, synapse: Synapse, gain: torch.Tensor, name: str) -> str:
        """The weight times the gain of each row: integers and a scale, or floats if the network's weight has no grid."""
        graph, label = self.graph, f"{synapse.layer or name}.weight"
        largest = float(synapse.weight.abs().max())
        if not synapse.integral or largest > _WIDE:
            numbers = synapse.weight * per_channel(gain, synapse.weight.dim() - 1)
            return graph.constant(numbers.numpy(), np.float32, label)
        dtype = np.int8 if largest <= _NARROW else np.int16
        # A scale must be positive: the sign of a gain goes into the weights, and a gain of 0 makes them 0.
        whole = graph.constant((synapse.weight * per_channel(gain.sign(), synapse.weight.dim() - 1)).numpy(), dtype, label)
        scale: Array = torch.where(gain == 0, 1.0, gain.abs()).numpy().astype(np.float32)
        axis: dict[str, Any] = {"axis": 0}
        if (scale == scale[0]).all():
            scale, axis = scale[0], {}  # one for the layer
        return graph.op(
            "DequantizeLinear", whole, graph.constant(scale, np.float32, f"{label}.scale"), name=f"{label}/dequantized", **axis
        )
