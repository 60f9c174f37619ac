"""A recorded graph as the forward of a network, in place of the user's own."""

import linecache
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from nbsnn.errors import ConfigError
from nbsnn.prepare.findings import Finding


class Forward:
    """The Python code of a graph, compiled: called with the network and its input. Copies share it; pickles hold the code."""

    def __init__(self, source: str, names: dict[str, Any]) -> None:
        self.source, self.names = source, names
        self._compile()

    @classmethod
    def of(cls, graph: fx.Graph) -> "Forward":
        code = graph.python_code("self")
        return cls(code.src, dict(code.globals))

    def _compile(self) -> None:
        namespace = dict(self.names)
        file = f"<nbsnn prepared {abs(hash(self.source)):x}>"
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(keepends=True), file)  # for stack traces
        exec(compile(self.source, file, "exec"), namespace)
        self._function = namespace["forward"]

    def __call__(self, network: nn.Module, input: Tensor) -> Any:
        return self._function(network, input)

    def __deepcopy__(self, memo: Any) -> "Forward":
        return self

    def __getstate__(self) -> dict[str, Any]:
        modules = {key: value.__name__ for key, value in self.names.items() if isinstance(value, ModuleType)}
        return {"source": self.source, "names": {k: v for k, v in self.names.items() if k not in modules}, "modules": modules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.source = state["source"]
        self.names = state["names"] | {key: import_module(name) for key, name in state["modules"].items()}
        self._compile()


@dataclass(frozen=True)
class Preparation:
    """How a network was prepared; an attribute `preparation` of the prepared network.

    Attributes:
        image_shape: shape of one image of the example.
        changes: what was rewritten.
        fixed_size: the network's own code computed with the size of the image, which is a constant now.
        keep: name patterns of layers that were left as they are.
        activations: False if weights alone were rewritten.
    """

    image_shape: tuple[int, ...]
    changes: tuple[Finding, ...]
    fixed_size: bool
    keep: tuple[str, ...] = ()
    activations: bool = True

    def header(self) -> dict[str, Any]:
        """Its entry in a file's header, by which the same network is prepared again."""
        return {"image_shape": list(self.image_shape), "keep": list(self.keep), "activations": self.activations}


class Prepared:
    """Base class that gives a network of any class the recorded forward; its other attributes are unchanged."""

    preparation: Preparation
    prepared_forward: Forward

    def forward(self, input: Tensor) -> Any:
        """The network on a batch of images [B, ...] of any size B."""
        wanted = self.preparation.image_shape
        if self.preparation.fixed_size and tuple(input.shape[1:]) != wanted and not torch.compiler.is_compiling():
            raise ConfigError(
                f"images of shape {list(input.shape[1:])}: the network's code computes with the size of images, and it was "
                f"prepared with {list(wanted)}; prepare or quantize it with an example of the new shape"
            )
        assert isinstance(self, nn.Module)
        return self.prepared_forward(self, input)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _revived, (type(self).__bases__[1],), self.__dict__


def with_forward_(network: nn.Module, graph: fx.Graph) -> nn.Module:
    """Let a network compute what a graph says, in place; it remains an instance of its class."""
    network.prepared_forward = Forward.of(graph)  # type: ignore[assignment]
    network.__class__ = _prepared_class(type(network))
    return network


def _prepared_class(cls: type[nn.Module]) -> type[nn.Module]:
    return type(cls.__name__, (Prepared, cls), {"__module__": cls.__module__})


def _revived(cls: type[nn.Module]) -> nn.Module:
    prepared = _prepared_class(cls)
    return prepared.__new__(prepared)


def preparation_of(network: nn.Module) -> Preparation | None:
    """How a network was prepared, in any form; None if it was not changed."""
    found = getattr(network, "preparation", None)
    return found if isinstance(found, Preparation) else None
