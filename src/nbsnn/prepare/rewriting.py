"""A network and its graph while passes rewrite them."""

import copy
from collections.abc import Callable, Collection
from fnmatch import fnmatch
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, fx, nn

from nbsnn.prepare.findings import Finding
from nbsnn.prepare.graph import Recorder
from nbsnn.quant.flow import WEIGHT_LAYERS
from nbsnn.tracing import function_name


def function_of(node: fx.Node) -> str:
    """The plain name of the function or method that a node calls: "relu", "add"; empty for other nodes."""
    if node.op == "call_method":
        return str(node.target).strip("_") if str(node.target).startswith("__") else str(node.target)
    if node.op != "call_function":
        return ""
    if node.target is getattr:
        return str(node.args[1])
    assert callable(node.target)
    return function_name(node.target) if not node.target.__name__.endswith("_") else node.target.__name__


class Rewriting:
    """A network and its graph, which passes change together.

    Attributes:
        net: the network, whose modules are replaced in place.
        graph: its recorded graph.
        is_recorded: whether the graph differs from the user's forward, which must be replaced by it.
        changes: what passes changed.
    """

    def __init__(self, net: nn.Module, recorder: Recorder, keep: Collection[str] = ()) -> None:
        self.net, self.graph, self.keep = net, recorder.graph, tuple(keep)
        self.constants, self.fixed_size = recorder.constants, recorder.fixed_size
        self.is_recorded = False
        self.changes: list[Finding] = []
        self.refused: list[Finding] = list(recorder.findings)

    # ------------------------------------------------------------------------------------------------------- modules

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        return self.net.get_submodule(str(node.target))

    def is_kept(self, path: str) -> bool:
        """Whether the user asked to leave a layer as it is."""
        return any(fnmatch(path, pattern) for pattern in self.keep)

    def put(self, path: str, module: nn.Module) -> None:
        """Replace the module at a path, under every name that it has."""
        old = self.net.get_submodule(path)
        module.train(self.net.training)
        for parent in list(self.net.modules()):
            for name, child in list(parent._modules.items()):
                if child is old:
                    parent._modules[name] = module

    def add(self, scope: str, stem: str, module: nn.Module) -> str:
        """Register a module under a new name, `stem` or stem_2 and so on, of the module `scope`; returns its path."""
        parent = self.net.get_submodule(scope)
        while isinstance(parent, (*WEIGHT_LAYERS, nn.ReLU)) and scope:  # which quantization replaces
            scope, _, leaf = scope.rpartition(".")
            parent, stem = self.net.get_submodule(scope), f"{stem}_{leaf}" if leaf.isdigit() else f"{leaf}_{stem}"
        names = chain((stem,), (f"{stem}_{number}" for number in count(2)))
        name = next(name for name in names if not hasattr(parent, name))
        parent.add_module(name, module.train(self.net.training))
        return f"{scope}.{name}".lstrip(".")

    def add_beside(self, path: str, module: nn.Module) -> str:
        """Register a module next to the one at `path`, under a numbered name."""
        scope, _, leaf = path.rpartition(".")
        if isinstance(self.net.get_submodule(scope), (nn.Sequential, nn.ModuleList)):
            leaf = f"place{leaf}"  # names of their children are numbers
        return self.add(scope, leaf, module)

    def clone(self, module: nn.Module) -> nn.Module:
        """A copy that shares the parameters."""
        return copy.deepcopy(module, {id(p): p for p in module.parameters()})

    def tensor(self, node: fx.Node) -> Tensor:
        """The parameter, buffer or constant that a node reads."""
        name = str(node.target)
        if name in self.constants:
            return self.constants[name]
        path, _, leaf = name.rpartition(".")
        found = getattr(self.net.get_submodule(path), leaf)
        assert isinstance(found, Tensor)
        return found

    @torch.no_grad()
    def evaluate(self, node: fx.Node, given: Callable[[fx.Node], Tensor | None] = lambda node: None) -> Any:
        """The value of a node; `given` has those of nodes that are not to be computed, such as the image."""
        if (known := given(node)) is not None:
            return known
        if node.op == "get_attr":
            return self.tensor(node)
        args = fx.node.map_arg(node.args, lambda n: self.evaluate(n, given))
        kwargs = fx.node.map_arg(node.kwargs, lambda n: self.evaluate(n, given))
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        function = self.module(node) if node.op == "call_module" else node.target
        assert callable(function)
        return function(*args, **kwargs)

    def describe(self, path: str) -> str:
        """A module for a message: "stage1.act (ReLU)"."""
        return f"{path} ({type(self.net.get_submodule(path)).__name__})"

    # --------------------------------------------------------------------------------------------------------- graph

    def call(self, path: str, x: fx.Node, *, at: fx.Node, after: bool = False) -> fx.Node:
        """A new node that calls a module on x, before the node `at` (or after it)."""
        with self.graph.inserting_after(at) if after else self.graph.inserting_before(at):
            node = self.graph.call_module(path, (x,))
        node.meta = {**at.meta, "shape": x.meta.get("shape"), "data": True}
        self.is_recorded = True
        return node

    def function(self, function: Callable[..., object], args: tuple[object, ...], *, at: fx.Node) -> fx.Node:
        """A new node that calls a function, before the node `at`, with a result of that node's shape."""
        with self.graph.inserting_before(at):
            node = self.graph.call_function(function, args)  # type: ignore[arg-type]
        node.meta = {**at.meta, "data": True}
        self.is_recorded = True
        return node

    def replace(self, node: fx.Node, new: fx.Node) -> None:
        """Let every user of a node use another one, and remove the node."""
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)
        self.is_recorded = True

    def retarget(self, node: fx.Node, path: str) -> None:
        """Let a node call another module."""
        node.target = path
        self.is_recorded = True

    # ------------------------------------------------------------------------------------------------------ messages

    def changed(self, node: fx.Node, what: str, *, status: str = "changed", remedy: str = "") -> None:
        """Record a change at a node."""
        self.changes.append(self._finding(node, what, status, remedy))

    def refuse(self, node: fx.Node, what: str, remedy: str) -> None:
        """Record what spikes cannot represent."""
        self.refused.append(self._finding(node, what, "refused", remedy))

    def _finding(self, node: fx.Node, what: str, status: str, remedy: str) -> Finding:
        layer = str(node.target) if node.op == "call_module" else node.meta.get("scope") or ""
        return Finding(layer, node.meta.get("place"), what, status, remedy)
