"""Record what a network computes as a graph of calls: torch's modules, torch's functions, and the sizes of batches.

A real example runs through any `forward`, so Python code sees tensors and numbers: branches on shapes, loops and assertions
work. Only the size of the batch is symbolic: it is an `int` that also knows how it was computed.
"""

import operator
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from nbsnn.errors import QuantizationError
from nbsnn.prepare.findings import Finding
from nbsnn.quant.flow import few
from nbsnn.structure import odd_output
from nbsnn.surgery import evaluation_mode
from nbsnn.tracing import CONSTANTS, LIKE, Tracer, function_name, tensors_in

_TORCH = str(Path(torch.__file__).parent)
_OWN = str(Path(__file__).parents[1])
_OWN_LAYERS = ("nbsnn.prepare.modules", "nbsnn.pooling")
_READS = {"data", "T", "mT", "H", "mH", "real"}  # attributes that hold a tensor with values of this one
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
# Functions whose result is a number of Python: what is done with it cannot be recorded.
# By their full names: x.float() is a tensor, and float(x) calls __float__.
_DECISIONS = {"__bool__", "__int__", "__float__", "__index__", "__complex__", "__array__"} | {
    "item", "tolist", "numpy", "is_nonzero", "equal", "allclose",
}  # fmt: skip


class BatchSize(int):
    """A number computed from the size of the batch: an `int` for Python, a node for the graph."""

    node: fx.Node

    @classmethod
    def of(cls, value: int, node: fx.Node) -> "BatchSize":
        number = cls(value)
        number.node = node
        return number


def _arithmetic(name: str) -> Callable[..., Any]:
    """An operator of `int` whose result is recorded too."""
    plain = getattr(int, f"__{name}__")
    function = getattr(operator, name.removeprefix("r") if name.startswith("r") else name)

    def apply(self: BatchSize, *others: Any) -> Any:
        result = plain(self, *others)
        if result is NotImplemented or not isinstance(result, int):
            return result
        operands = (self.node, *(getattr(o, "node", o) for o in others))
        node = self.node.graph.call_function(function, operands[::-1] if name.startswith("r") else operands)
        return BatchSize.of(result, node)

    return apply


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "mod", "neg"):
    setattr(BatchSize, f"__{_name}__", _arithmetic(_name))


def is_leaf(module: nn.Module) -> bool:
    """Whether a module's forward is one of torch's own, so that the graph calls the module instead of looking inside."""
    forward = type(module).forward
    own: type[nn.Module] = next((c for c in type(module).__mro__ if c.__module__.startswith(("torch.nn", "nbsnn."))), nn.Module)
    if isinstance(module, _CONTAINERS) or own is nn.Module or "forward" in vars(module) or own.forward is not forward:
        return False
    if own.__module__.startswith("nbsnn."):
        return own.__module__ in _OWN_LAYERS
    unchanged = getattr(type(module), "_conv_forward", None) is getattr(own, "_conv_forward", None)
    return unchanged and not own.__module__.startswith(("torch.nn.modules.transformer", "torch.nn.parallel"))


class Recorder(Tracer):
    """One run of a network, recorded.

    Attributes:
        graph: one placeholder, calls, and an output. Each node has `meta`: "shape" of its tensor, "data" (whether it depends on
            the image), "scope" (the module whose code made the call), "place" ("file:line" of that code, or None).
        constants: tensors that are neither parameters nor buffers, by the name under which the graph reads them.
        findings: what cannot be recorded.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.findings: list[Finding] = []
        self.fixed_size = False
        self._leaf: tuple[nn.Module, Any, Any] | None = None
        self._attributes: dict[int, str] = {id(b): name for name, b in network.named_buffers()}
        self._attributes |= {id(p): name for name, p in network.named_parameters()}
        self._root = network
        self._sized_tensors: dict[tuple[Any, ...], tuple[Tensor, fx.Node]] = {}  # made of the batch's size, such as zeros

    def record(self, image: Tensor) -> Any:
        """Run the network on images [B, ...] and record it; returns its output."""
        start = self.graph.placeholder("input")
        start.meta.update(shape=tuple(image.shape), data=True, scope="", place=None)
        output = self.follow(self._root, image, start, error=QuantizationError)
        if (odd := odd_output(output)) is not None:
            what = f"the network returns a {odd}"
            self.findings.append(Finding("", None, what, "refused", "return tensors, in tuples, lists or dicts"))
        self.graph.output(self._argument(output))
        self.graph.eliminate_dead_code(writes)
        return output

    def _watch(self, name: str, module: nn.Module) -> Any:
        if module is self._root or not is_leaf(module):
            yield from super()._watch(name, module)
            return

        # Around the user's hooks: they stay with the module, which the graph calls.
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            if self._leaf is None:
                self._leaf = (module, self._argument(args), self._argument(kwargs))
                self.path.append((name, module))

        def leave(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._leaf is None or self._leaf[0] is not module:
                return
            _, own_args, own_kwargs = self._leaf
            self._leaf = None
            self.path.pop()
            node = self.graph.call_module(name, own_args, own_kwargs)
            self._bind(node, output)

        yield module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
        yield module.register_forward_hook(leave, with_kwargs=True)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(tensors_in((args, kwargs)))
        if self._leaf is not None or not (any(self._is_known(t) for t in given) or _has_batch_size((args, kwargs))):
            return func(*args, **kwargs)
        name = function_name(func)
        attribute = func.__name__ == "__get__"
        if name in ("shape", "size", "numel", "nelement"):
            return self._size(name, func, args, kwargs)
        if attribute and name not in _READS:
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if func.__name__ in _DECISIONS:
            if any(t in self.known and self.known[t].meta["data"] for t in given):
                self._refuse_decision(name)
            return result
        if attribute:
            node = self.graph.call_function(getattr, (self._argument(args[0]), name))
        elif getattr(Tensor, func.__name__, None) is func:
            node = self.graph.call_method(func.__name__, self._argument(args), self._argument(kwargs))
        else:
            node = self.graph.call_function(func, self._argument(args), self._argument(kwargs))
        self._bind(node, args[0] if result is None and func.__name__ == "__setitem__" else result)
        return result

    def _bind(self, node: fx.Node, result: Any) -> None:
        """From now on, `node` computes the tensors of `result`."""
        name = function_name(node.target) if callable(node.target) else str(node.target)
        sources = node.args[:1] if name in LIKE else node.all_input_nodes
        data = name not in CONSTANTS and any(isinstance(n, fx.Node) and n.meta.get("data", False) for n in sources)
        scope, place = (self.path[-1][0] if self.path else ""), _line_of_user()
        node.meta.update(data=data, scope=scope, place=place)
        if isinstance(result, Tensor):
            node.meta["shape"] = tuple(result.shape)
            if not data:
                self._sized_tensors[_memory(result)] = result, node
            # x[...] = y returns nothing; `assignments` turns it into a call that returns what later uses of x see.
            self.known[result] = node.args[0] if node.target == "__setitem__" and not data else node
        elif isinstance(result, (list, tuple, Mapping)):
            for key, item in result.items() if isinstance(result, Mapping) else enumerate(result):
                if any(True for _ in tensors_in(item)):
                    self._bind(self.graph.call_function(operator.getitem, (node, key)), item)

    def _is_known(self, tensor: Tensor) -> bool:
        return tensor in self.known or id(tensor) in self._attributes

    def _argument(self, value: Any) -> Any:
        """A value as an argument of a node."""
        if isinstance(value, Tensor):
            if value not in self.known:
                self.known[value] = self._constant(value)
            return self.known[value]
        if isinstance(value, BatchSize):
            return value.node
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._argument(item) for item in value))
        if isinstance(value, (list, tuple)):
            return (list if isinstance(value, list) else tuple)(self._argument(item) for item in value)
        if isinstance(value, Mapping):
            return {key: self._argument(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(self._argument(value.start), self._argument(value.stop), self._argument(value.step))
        return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value

    def _constant(self, value: Tensor) -> fx.Node:
        """A node that reads a parameter, a buffer, or any other tensor that does not depend on the image."""
        name = self._attributes.get(id(value))
        if name is None and _memory(value) in self._sized_tensors:  # the same one, in a Variable
            return self._sized_tensors[_memory(value)][1]
        if name is None:
            name = f"_constant_{len(self.constants)}"
            self.constants[name] = value.detach().clone()
        node = self.graph.get_attr(name)
        zero = name in self.constants and not bool(value.any())
        node.meta.update(shape=tuple(value.shape), data=False, scope="", place=None, zero=zero)
        return node

    def _size(self, name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Sizes of a tensor: axis 0, and the number of values, depend on the batch."""
        result, tensor = func(*args, **kwargs), self._argument(args[0])
        if not tensor.meta["data"] or args[0].dim() == 0:
            return result
        if not isinstance(result, torch.Size):
            axis = args[1] if len(args) > 1 else kwargs.get("dim")
            if name == "size" and axis % args[0].dim() != 0:
                self.fixed_size = True
                return result
            node = self.graph.call_method(name, (tensor,) if name != "size" else (tensor, 0))
            return self._sized(int(result), node)
        self.fixed_size = True
        first = self._sized(int(result[0]), self.graph.call_method("size", (tensor, 0)))
        return torch.Size((first, *result[1:]))

    def _sized(self, value: int, node: fx.Node) -> BatchSize:
        node.meta.update(data=False, scope="", place=None)
        return BatchSize.of(value, node)

    def _refuse_decision(self, name: str) -> None:
        self.findings.append(
            Finding(
                self.place, _line_of_user(), f"{name}() makes a Python number of values that depend on the image", "refused",
                "compute with tensors instead: what a network does may depend on shapes, not on values",
            )
        )  # fmt: skip


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors have in common if they are views of the same numbers."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _has_batch_size(tree: Any) -> bool:
    if isinstance(tree, (list, tuple)):
        return any(_has_batch_size(item) for item in tree)
    if isinstance(tree, Mapping):
        return any(_has_batch_size(item) for item in tree.values())
    return isinstance(tree, BatchSize)


def writes(node: fx.Node) -> bool:
    """Whether a call changes one of its arguments, so that it must stay even if its result is not used."""
    name = node.target if isinstance(node.target, str) and node.op == "call_method" else getattr(node.target, "__name__", "")
    in_place = (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "__iadd__", "__isub__", "__imul__")
    return node.op in ("placeholder", "output") or (node.op != "call_module" and in_place and node.meta.get("data", False))


def _line_of_user() -> str | None:
    """ "file:line" of the code outside torch and this package that is running; None without any."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith(_TORCH):
            if path.startswith(_OWN):
                if frame.f_code.co_name == "follow":
                    return None
            elif not path.startswith("<"):
                return f"{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return None


def record(network: nn.Module, images: Tensor) -> Recorder:
    """Record a network in evaluation mode, on the first of some images [B, ...].

    Raises:
        QuantizationError: the network takes several inputs, or does not run on such images.
    """
    recorder = Recorder(network)
    with evaluation_mode(network):
        recorder.record(few(images))
    return recorder
