"""Max pools: each a module of its own, on outputs of neurons.

The maximum and any monotone activation change places, so conv → pool → relu is conv → relu → pool. Of a pair of opposite
populations, x = p − n, where one of the two is always 0, the maximum is that of p minus the minimum of n.
"""

import operator
from typing import Any

import torch
from torch import fx, nn

from nbsnn.pooling import MAX_POOLS, AdaptiveMinPool1d, AdaptiveMinPool2d, MinPool1d, MinPool2d
from nbsnn.prepare.modules import SignedActivation
from nbsnn.prepare.rewriting import Rewriting, function_of
from nbsnn.prepare.signals import JOINING, Inserter, axis_of, mixes_channels, signals

_WINDOW = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_ADAPTIVE = ("input", "output_size", "return_indices")
_FUNCTIONS: dict[str, tuple[tuple[str, ...], type[nn.Module]]] = {
    "max_pool1d": (_WINDOW, nn.MaxPool1d), "max_pool2d": (_WINDOW, nn.MaxPool2d),
    "adaptive_max_pool1d": (_ADAPTIVE, nn.AdaptiveMaxPool1d), "adaptive_max_pool2d": (_ADAPTIVE, nn.AdaptiveMaxPool2d),
}  # fmt: skip
_MINIMUM = {
    nn.MaxPool1d: MinPool1d, nn.MaxPool2d: MinPool2d,
    nn.AdaptiveMaxPool1d: AdaptiveMinPool1d, nn.AdaptiveMaxPool2d: AdaptiveMinPool2d,
}  # fmt: skip


def call_pools(rewriting: Rewriting) -> None:
    """Turn functional max pools into modules, and give each place one of its own."""
    seen: set[nn.Module] = set()
    for node in list(rewriting.graph.nodes):
        name = function_of(node)
        if name in _FUNCTIONS:
            keys, cls = _FUNCTIONS[name]
            given = dict(zip(keys, node.args, strict=False)) | dict(node.kwargs)
            x = given.pop("input")
            if given.pop("return_indices", False) or any(isinstance(v, fx.Node) for v in given.values()):
                continue
            path = rewriting.add(node.meta["scope"], "pool", cls(**given))
            new = rewriting.call(path, x, at=node)
            new.meta["shape"] = node.meta["shape"]
            rewriting.replace(node, new)
            rewriting.changed(new, f"{name}() became {rewriting.describe(path)}")
        elif name == "amax" and (found := _global_maximum(node)) is not None:
            x, kept = found
            path = rewriting.add(node.meta["scope"], "pool", nn.AdaptiveMaxPool2d(1))
            new = rewriting.call(path, x, at=node)
            new.meta["shape"] = (*x.meta["shape"][:2], 1, 1)
            rewriting.replace(node, new if kept else rewriting.function(torch.flatten, (new, 1), at=node))
            rewriting.changed(new, f"{name}() became {rewriting.describe(path)}")
        elif node.op == "call_module" and isinstance(module := rewriting.module(node), MAX_POOLS):
            path = str(node.target)
            if rewriting.is_kept(path):
                continue
            if module in seen:
                made = rewriting.add_beside(path, rewriting.clone(module))
                rewriting.retarget(node, made)
                rewriting.changed(node, f"{path} is called in several places; here it became {made}")
            seen.add(rewriting.module(node))


def _global_maximum(node: fx.Node) -> tuple[fx.Node, bool] | None:
    """The input of a maximum over rows and columns, and whether it keeps their axes."""
    given = dict(zip(("input", "dim", "keepdim"), node.args, strict=False)) | dict(node.kwargs)
    x, axes = given.get("input", given.get("self")), given.get("dim")
    if not isinstance(x, fx.Node) or len(x.meta.get("shape") or ()) != 4 or not isinstance(axes, (tuple, list)):
        return None
    spatial = sorted(axis % 4 for axis in axes if isinstance(axis, int)) == [2, 3]
    return (x, bool(given.get("keepdim", False))) if spatial else None


class PoolMover:
    """Moves every max pool next to an activation."""

    def __init__(self, rewriting: Rewriting, inserter: Inserter) -> None:
        self.rewriting, self.inserter = rewriting, inserter
        self.pairs: dict[fx.Node, tuple[fx.Node, fx.Node, SignedActivation, str]] = {}

    def run(self) -> None:
        """In order of data flow; a pool that reads outputs of neurons is left alone."""
        for node in list(self.rewriting.graph.nodes):
            if not self._is_pool(node):
                continue
            self.inserter.known = signals(self.rewriting)
            if self._holds_counts(node.args[0]):
                continue
            self._move(node)

    def _is_pool(self, node: fx.Node) -> bool:
        if node.op != "call_module" or self.rewriting.is_kept(str(node.target)) or not node.args:
            return False
        module = self.rewriting.module(node)
        return isinstance(module, MAX_POOLS) and type(module) in _MINIMUM and not module.return_indices

    def _holds_counts(self, x: fx.Node) -> bool:
        """Whether each channel of a value holds outputs of one channel of neurons, or zeros."""
        signal = self.inserter.known[x]
        return signal.counts and signal.positive and not mixes_channels(self.rewriting, x)

    def _move(self, node: fx.Node) -> None:
        act = self._activation_after(node)
        x = node.args[0]
        assert isinstance(x, fx.Node)
        if act is not None and x not in self.pairs and not self._is_pair(x):
            path = str(act.target)
            before = self.rewriting.call(path, x, at=node)
            before.meta.update(scope=act.meta["scope"], place=act.meta["place"])
            node.replace_input_with(x, before)
            self.rewriting.replace(act, node)
            self.rewriting.changed(node, f"{node.target} and {path} changed places: the maximum of activations is the same")
            self.inserter.known = signals(self.rewriting)
            x = before
            if isinstance(self.rewriting.module(before), nn.ReLU):
                return
        new = self._pooled(node, x)
        self.rewriting.replace(node, new)
        self.inserter.known = signals(self.rewriting)

    def _activation_after(self, node: fx.Node) -> fx.Node | None:
        """The only reader of a pool, if it is a monotone activation."""
        users = list(node.users)
        if len(users) != 1 or users[0].op != "call_module" or self.rewriting.is_kept(str(users[0].target)):
            return None
        module = self.rewriting.module(users[0])
        monotone = isinstance(module, nn.ReLU) or (isinstance(module, SignedActivation) and module.is_monotone)
        return users[0] if monotone else None

    def _is_pair(self, node: fx.Node) -> bool:
        if node in self.pairs:
            return True
        if node.op != "call_module":
            return False
        module = self.rewriting.module(node)
        return isinstance(module, SignedActivation) and module.is_monotone

    def _pooled(self, node: fx.Node, x: fx.Node) -> fx.Node:
        """A node with the value of a pool `node` applied to x, made of pools of outputs of neurons."""
        known = self.inserter.known
        if self._holds_counts(x):
            return self._again(node, str(node.target), x)
        if function_of(x) in JOINING and axis_of(x) == 1:
            parts = [self._pooled(node, part) for part in _parts(x)]
            return self.rewriting.function(torch.cat, (parts, 1), at=node)
        if not self._is_pair(x):
            inserted = (
                self.inserter.rectified(x, str(node.target)) if known[x].current else self.inserter.insert(x, str(node.target))
            )
            self.inserter.known = signals(self.rewriting)
            return self._pooled(node, inserted)
        positive, negative, act, path = self._pair(x)
        largest = self._again(node, str(node.target), positive)
        module = self.rewriting.module(node)
        minimum = self.rewriting.add_beside(f"{node.target}", _minimum_of(module))
        smallest = self._again(node, minimum, negative)
        joined = self._join(largest, smallest, act, path, at=node)
        self.pairs[joined] = (largest, smallest, act, path)
        self.rewriting.changed(
            node, f"the maximum of {path} is that of its positive side minus the minimum ({minimum}) of the other"
        )
        return joined

    def _again(self, node: fx.Node, path: str, x: fx.Node) -> fx.Node:
        """Another call of a pool; its first call keeps the module, later ones have copies."""
        others = [n for n in self.rewriting.graph.nodes if n.op == "call_module" and n.target == path and n is not node]
        if others:
            path = self.rewriting.add_beside(path, self.rewriting.clone(self.rewriting.net.get_submodule(path)))
        new = self.rewriting.call(path, x, at=node)
        new.meta["shape"] = (*x.meta["shape"][:2], *node.meta["shape"][2:])
        return new

    def _pair(self, x: fx.Node) -> tuple[fx.Node, fx.Node, SignedActivation, str]:
        """The two populations of a signed activation, which is taken apart."""
        if x in self.pairs:
            return self.pairs[x]
        rewriting, path = self.rewriting, str(x.target)
        act, current = rewriting.module(x), x.args[0]
        assert isinstance(act, SignedActivation)
        assert isinstance(current, fx.Node)
        positive = rewriting.call(f"{path}.positive", current, at=x)
        opposite = rewriting.function(operator.neg, (current,), at=x)
        negative = rewriting.call(f"{path}.negative", opposite, at=x)
        joined = self._join(positive, negative, act, path, at=x)
        self.pairs[joined] = (positive, negative, act, path)
        self.inserter.moved(x, joined)
        rewriting.replace(x, joined)
        return self.pairs[joined]

    def _join(self, positive: fx.Node, negative: fx.Node, act: SignedActivation, path: str, *, at: fx.Node) -> fx.Node:
        rewriting = self.rewriting
        if act.weight is not None:
            with rewriting.graph.inserting_before(at):
                weight = rewriting.graph.get_attr(f"{path}.weight")
                axes = len(positive.meta["shape"]) - 2
                slope: Any = rewriting.graph.call_method("view", (weight, 1, -1, *(1 for _ in range(axes))))
            for made in (weight, slope):
                made.meta.update(data=False, scope="", place=None, shape=None)
        else:
            slope = act.slope
        scaled = negative if slope == 1 else rewriting.function(operator.mul, (negative, slope), at=at)
        joined = rewriting.function(operator.sub, (positive, scaled), at=at)
        for node in {scaled, joined}:
            node.meta["shape"] = positive.meta["shape"]
        return joined


def _minimum_of(module: nn.Module) -> nn.Module:
    """The min pool with the windows of a max pool."""
    cls = _MINIMUM[type(module)]  # type: ignore[index]
    if isinstance(module, (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)):
        return cls(module.output_size)  # type: ignore[no-any-return]
    return cls(module.kernel_size, module.stride, module.padding, module.dilation, ceil_mode=module.ceil_mode)  # type: ignore[no-any-return]


def _parts(node: fx.Node) -> list[fx.Node]:
    """What is concatenated."""
    parts = node.args[0] if node.args else node.kwargs["tensors"]
    assert isinstance(parts, (list, tuple))
    return list(parts)  # type: ignore[arg-type]
