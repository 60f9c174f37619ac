"""Trace the tensors that depend on an image through any `forward`: the dry run used by the audit and by lowering.

A `TorchFunctionMode` intercepts every torch function, and hooks every module. So data is traced, not source code, along the
path that the example takes.
"""

import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from nbsnn.errors import NbsnnError
from nbsnn.hooks import hooked

CONSTANTS = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "empty_like", "new_empty"}
LIKE = {"to", "type_as", "expand_as", "view_as", "reshape_as"}  # functions of a tensor that see no values of another one
_METADATA = {"size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "is_floating_point", "len", "format"}
_READ_AS_DATA = {"data", "T", "mT", "H", "mH"}  # attributes that return a tensor with the same values


class Tracer(TorchFunctionMode):
    """One dry run. Subclasses define what is known of the image and of tensors computed from it.

    Attributes:
        opaque: module classes inside which functions are not traced; `left` handles what they return.
        known: what is known of each tensor that depends on the image.
        path: names of the running modules and the modules, the innermost last.
    """

    opaque: ClassVar[tuple[type[nn.Module], ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.path: list[tuple[str, nn.Module]] = []

    def called(self, func: Callable[..., Any], name: str, args: Any, kwargs: Mapping[str, Any], sources: list[Tensor]) -> Any:
        """Call a function on `sources`, which are known, record what is known of its result, and return it."""
        raise NotImplementedError

    def entered(self, name: str, module: nn.Module, inputs: list[Tensor]) -> None:
        """A module was called on these tensors, after its own pre-hooks."""

    def left(self, name: str, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        """A module returned, before its own hooks."""

    @property
    def place(self) -> str:
        """The name of the innermost running module, for messages."""
        return (self.path[-1][0] if self.path else "") or "the network's own forward"

    @property
    def innermost(self) -> nn.Module | None:
        """The innermost running module."""
        return self.path[-1][1] if self.path else None

    def follow(self, network: nn.Module, image: Tensor, value: Any, *, error: type[NbsnnError]) -> Any:
        """Run `network` on `image`, of which `value` is known, and return its output; hooks are removed on exit.

        Raises:
            error: the network takes more than one input, or its own code fails on the image.
        """
        check_one_input(network, error)
        self.known[image] = value
        version = image._version
        watching = hooked(handle for name, module in network.named_modules() for handle in self._watch(name, module))
        # The result must not depend on the caller's context: no autocast.
        full = torch.autocast("cpu" if image.is_meta else image.device.type, enabled=False)
        try:
            with watching, torch.no_grad(), full, self:
                output = network(image)
        except NbsnnError:
            raise
        except Exception as caught:
            reason = _reason(caught).replace(";", ",")  # what follows ours is the remedy
            raise error(
                f"the example of shape {list(image.shape[1:])} does not run at {self.place}: {reason}; "
                "give images on which the network runs"
            ) from caught
        if image._version != version:
            raise error("the network writes into the images it is given; write x = x - mean and the like, not x.sub_(mean)")
        return output

    def _watch(self, name: str, module: nn.Module) -> Iterable[Any]:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            self.path.append((name, module))
            self.entered(name, module, list(tensors_in((args, kwargs))))

        def leave(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.left(name, module, list(tensors_in((args, kwargs))), output)
            self.path.pop()

        # The user's hooks run between these two, so that what they compute is traced like the rest of `forward`.
        yield module.register_forward_pre_hook(enter, with_kwargs=True)
        yield module.register_forward_hook(leave, with_kwargs=True, prepend=True)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = args[:1] if function_name(func) in LIKE else (args, kwargs)
        sources = [t for t in tensors_in(given) if t in self.known]
        if not sources or isinstance(self.innermost, self.opaque) or _is_bookkeeping(func):
            return func(*args, **kwargs)
        return self.called(func, function_name(func), args, kwargs, sources)


def _reason(error: Exception) -> str:
    """The first line of an error's message; of an assertion without one, the line of code."""
    code = traceback.extract_tb(error.__traceback__)[-1].line if isinstance(error, AssertionError) else None
    return (str(error) or code or type(error).__name__).splitlines()[0]


def check_one_input(network: nn.Module, error: type[NbsnnError]) -> None:
    """Raise an error for a network whose `forward` needs more than one input.

    Raises:
        error: names the inputs.
    """
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(network.forward).parameters.values()
    wanted = [p.name for p in parameters if p.default is p.empty and p.kind not in optional]
    if len(wanted) > 1:
        raise error(
            f"the network's forward takes {len(wanted)} inputs ({', '.join(wanted)}), and a spiking network takes one; "
            "concatenate them along the channels, and split them in forward"
        )


def function_name(func: Callable[..., Any]) -> str:
    """The plain name of a torch function: "add" for `Tensor.__add__`, "data" for reading `.data`."""
    if func.__name__ == "__get__":
        return str(getattr(func, "__self__", func).__name__)
    return func.__name__.strip("_")


def _is_bookkeeping(func: Callable[..., Any]) -> bool:
    """Whether the result does not depend on the tensor's values: a constant of its shape, the shape, or an attribute."""
    name = function_name(func)
    return name in CONSTANTS or name in _METADATA or (func.__name__ == "__get__" and name not in _READ_AS_DATA)


def tensors_in(tree: Any) -> Iterable[Tensor]:
    """All tensors in nested lists, tuples and mappings."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from tensors_in(item)
