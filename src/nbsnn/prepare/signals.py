"""What each value of a graph is: the image, outputs of neurons and affine functions of them, or the current of a weight layer.

A weight layer reads outputs of neurons (or the image), and a max pool reads outputs of neurons alone. In front of one that
would receive something else, an activation is inserted that has the same function: x = relu(x) − relu(−x).
"""

from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from nbsnn.pooling import MAX_POOLS
from nbsnn.prepare.modules import SignedActivation
from nbsnn.prepare.rewriting import Rewriting, function_of
from nbsnn.quant.flow import WEIGHT_LAYERS
from nbsnn.quant.operations import ARRANGING, DROPOUT, WEIGHINGS
from nbsnn.shapes import per_channel

_SAME = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)
_PADS = (nn.ZeroPad1d, nn.ZeroPad2d)
_ARRANGING_MODULES = (*_SAME, *_PADS, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)
_POOLS = (nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd, nn.Upsample)
_CHOOSING = {"getitem", "chunk", "split", "narrow", "index_select", "unbind", "select", "tensor_split"}
JOINING = {"cat", "concat", "concatenate"}
_MOVING = ARRANGING - JOINING - {"stack", "pad", "written"}  # one tensor's values, all or some of them
_AVERAGES = {"avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean", "sum", "interpolate"}
_SUMS = {"add", "iadd", "add_", "radd"}


class Signal(NamedTuple):
    """What is known of a value.

    Attributes:
        current: a weight layer has been applied since the last neurons.
        counts: its values are outputs of neurons, of one layer per channel, or zeros.
        positive: it has no negative values.
    """

    current: bool
    counts: bool
    positive: bool


_CONSTANT = Signal(False, False, False)


def signals(rewriting: Rewriting) -> dict[fx.Node, Signal]:
    """The signal of every node."""
    known: dict[fx.Node, Signal] = {}
    for node in rewriting.graph.nodes:
        known[node] = signal_of(rewriting, node, known)
    return known


def signal_of(rewriting: Rewriting, node: fx.Node, known: dict[fx.Node, Signal]) -> Signal:
    """The signal of a node, given those of its inputs."""
    inputs = [known[n] for n in node.all_input_nodes if n.meta.get("data")]
    if not inputs:
        return _CONSTANT
    current = any(s.current for s in inputs)
    counts, positive = all(s.counts for s in inputs), all(s.positive for s in inputs)
    if node.op == "call_module":
        module = rewriting.module(node)
        if isinstance(module, WEIGHT_LAYERS):
            return Signal(True, False, False)
        if isinstance(module, nn.ReLU):
            return Signal(False, True, True)
        if isinstance(module, SignedActivation):
            return Signal(False, False, False)
        if isinstance(module, MAX_POOLS):
            return Signal(current, counts, positive)
        if isinstance(module, _ARRANGING_MODULES):
            return Signal(current, counts, positive)
        return Signal(current, False, positive and isinstance(module, _POOLS))
    name = function_of(node)
    if name in _MOVING or name in DROPOUT or (name == "pad" and is_zero_pad(node)):
        return Signal(current, counts, positive)
    if name in JOINING:
        return Signal(current, counts and axis_of(node) == 1, positive)
    if name in WEIGHINGS:
        return Signal(True, False, False)
    sum_of_data = name in _SUMS and all(isinstance(a, fx.Node) and a.meta.get("data") for a in node.args[:2])
    return Signal(current, False, positive and (name in _AVERAGES or sum_of_data))


def mixes_channels(rewriting: Rewriting, node: fx.Node) -> bool:
    """Whether a channel of a value has places of several channels of what it is arranged of, as after a pixel shuffle."""
    numbers: dict[fx.Node, Tensor] = {}

    def number(source: fx.Node) -> Tensor | None:
        """Numbers of channels for the values that are not an arrangement of others."""
        if not source.meta.get("data") or _arranges(rewriting, source):
            return None
        if source not in numbers:
            shape = source.meta["shape"]
            first = 1 + sum(known.shape[1] for known in numbers.values())
            channels = torch.arange(first, first + shape[1], dtype=torch.float64)
            numbers[source] = per_channel(channels, len(shape) - 2).expand(shape)
        return numbers[source]

    channels = rewriting.evaluate(node, number)[0].flatten(1)
    return bool(((channels != 0) & (channels != channels.amax(1, keepdim=True))).any())


def _arranges(rewriting: Rewriting, node: fx.Node) -> bool:
    """Whether a call moves values of others, all or some of them, and zeros."""
    if node.op == "call_module":
        return isinstance(rewriting.module(node), _ARRANGING_MODULES)
    name = function_of(node)
    return name in _MOVING | JOINING | DROPOUT or (name == "pad" and is_zero_pad(node))


def is_zero_pad(node: fx.Node) -> bool:
    """Whether a call of `pad` adds zeros."""
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return bool(mode == "constant" and (value is None or value == 0))


def axis_of(node: fx.Node) -> int | None:
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    return axis % len(node.meta["shape"]) if isinstance(axis, int) else None


class Inserter:
    """Inserts activations in front of what must receive outputs of neurons; one per value, however many read it."""

    def __init__(self, rewriting: Rewriting) -> None:
        self.rewriting = rewriting
        self.known = signals(rewriting)
        self._made: dict[fx.Node, fx.Node] = {}

    def run(self) -> None:
        """Let every weight layer read outputs of neurons, or the image."""
        for node in list(self.rewriting.graph.nodes):
            if node.op == "call_module" and isinstance(self.rewriting.module(node), WEIGHT_LAYERS):
                x = node.args[0] if node.args else node.kwargs["input"]
                if isinstance(x, fx.Node) and x in self.known and self.known[x].current:
                    node.replace_input_with(x, self.rectified(x, str(node.target)))

    def rectified(self, node: fx.Node, reader: str) -> fx.Node:
        """The node with the value of this one that consists of outputs of neurons."""
        if node in self._made or not self.known[node].current:
            return self._made.get(node, node)
        sources = [n for n in node.all_input_nodes if n.meta.get("data")]
        if self._passes(node) and not all(s in self._made for s in sources):
            new = self._again(node, {s: self.rectified(s, reader) for s in sources})
        else:
            new = self.insert(node, reader)
        self._made[node] = new
        return new

    def insert(self, node: fx.Node, reader: str) -> fx.Node:
        """An activation after a node, with the same value."""
        rewriting = self.rewriting
        if self.known[node].positive:
            path, words = rewriting.add(node.meta["scope"], "act", nn.ReLU()), "an nn.ReLU, as it is never negative"
        else:
            path, words = rewriting.add(node.meta["scope"], "signed", SignedActivation.identity()), "relu(x) − relu(−x)"
        new = rewriting.call(path, node, at=node, after=True)
        self.known[new] = signal_of(rewriting, new, self.known)
        rewriting.changed(
            node, f"{reader} reads what is not the output of an activation; it is quantized at {path}, {words}",
            status="approximated", remedy=self._offer(node, reader),
        )  # fmt: skip
        return new

    def moved(self, old: fx.Node, new: fx.Node) -> None:
        """Note that a node which was inserted is replaced by another one."""
        self._made = {node: new if made is old else made for node, made in self._made.items()}

    def _passes(self, node: fx.Node) -> bool:
        """Whether an activation may stand before a node instead of after it."""
        if node.op == "call_module":
            return isinstance(self.rewriting.module(node), (*_SAME, *_PADS))
        name = function_of(node)
        if name in JOINING:
            return axis_of(node) == 1
        # Neurons lie in rows or planes: better before a channel shuffle's 5 axes than after.
        arranged = name in _MOVING - _CHOOSING and len(node.meta["shape"]) not in (2, 3, 4)
        return name in DROPOUT or (name == "pad" and is_zero_pad(node)) or arranged

    def _again(self, node: fx.Node, inputs: dict[fx.Node, fx.Node]) -> fx.Node:
        """The same call on other inputs."""
        with self.rewriting.graph.inserting_after(node):
            new = self.rewriting.graph.node_copy(node, lambda n: inputs.get(n, n))
        new.meta = dict(node.meta)
        self.known[new] = signal_of(self.rewriting, new, self.known)
        return new

    def _offer(self, node: fx.Node, reader: str) -> str:
        """Two linear layers in sequence that are one without loss."""
        while node.op == "call_module" and isinstance(self.rewriting.module(node), nn.modules.batchnorm._BatchNorm):
            node = node.all_input_nodes[0]
        if node.op != "call_module" or not isinstance(self.rewriting.module(node), WEIGHT_LAYERS):
            return ""
        first, second = self.rewriting.module(node), self.rewriting.net.get_submodule(reader)
        if not isinstance(second, WEIGHT_LAYERS):
            return ""
        sizes = [getattr(layer, "kernel_size", (1,)) for layer in (first, second)]
        padded = any(getattr(second, "padding", (0,))) if max(sizes[1]) > 1 else False
        if min(max(size) for size in sizes) == 1 and not padded and not isinstance(second, nn.modules.conv._ConvTransposeNd):
            return f"or merge {node.target} and {reader} into one layer, which loses nothing"
        return "or put an activation or fewer layers there"
