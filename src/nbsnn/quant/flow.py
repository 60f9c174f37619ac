"""Data flow of an image through a network: weight layers that read it, that produce the output, and that are never called.

The audit is a subclass that raises errors.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from nbsnn.errors import NbsnnError, QuantizationError
from nbsnn.quant.operations import WEIGHINGS
from nbsnn.surgery import evaluation_mode
from nbsnn.tracing import Tracer, tensors_in

WEIGHT_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
BATCH = 3  # images in a dry run: few, and rarely the length of another axis
_IMAGE = ""  # the image, among names of layers


class Origin(NamedTuple):
    """Where a current comes from: activations on the longest path from the image, and the weight layers just before it."""

    depth: int
    layers: frozenset[str]


class Flow(Tracer):
    """One traced run of a network, and its results.

    Attributes:
        first: weight layers that read the image itself.
        last: weight layers whose outputs reach the network's output without another weight layer between.
        seen: names of all modules that were called.
        loose: parameter → function that multiplies currents by it outside a weight layer, as in `F.conv2d(x, self.kernel)`.
        depth: activations on the longest path from image to output.
        depths: activation → activations on the longest path from image to its output, itself included.
    """

    def __init__(self, network: nn.Module, *, activations: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.first: set[str] = set()
        self.last: set[str] = set()
        self.seen: set[str] = set()
        self.loose: dict[str, str] = {}
        self.depth = 0
        self.depths: dict[str, int] = {}
        self._network, self._activations = network, activations
        # Names of parameters, and of the parameters that other constants are computed from.
        self._names: WeakTensorKeyDictionary = WeakTensorKeyDictionary({p: name for name, p in network.named_parameters()})

    def run(self, images: Tensor, error: type[NbsnnError]) -> Any:
        """Trace the first of some images [B, ...], repeated a few times, through the network; returns its output.

        Raises:
            error: the network does not run on one tensor of such images.
        """
        for name, parameter in self._network.named_parameters():
            if parameter.is_meta:
                raise error(
                    f"{name} is on the meta device and has no values; call to_empty(device='cpu') and load a state dict"
                )
        output = self.follow(self._network, few(images), Origin(0, frozenset([_IMAGE])), error=error)
        for tensor in tensors_in(output):
            if tensor in self.known:
                self.last |= self.known[tensor].layers - {_IMAGE}
                self.depth = max(self.depth, self.known[tensor].depth)
        return output

    def called(self, func: Callable[..., Any], name: str, args: Any, kwargs: Mapping[str, Any], sources: list[Tensor]) -> Any:
        if name in WEIGHINGS and not isinstance(self.innermost, WEIGHT_LAYERS):
            self.loose |= dict.fromkeys(self.parameters_in(args, kwargs), name)
        result = func(*args, **kwargs)
        self.note(result, sources)
        if result is None and isinstance(args[0], Tensor):  # x[...] = y
            self.note(args[0], sources)
        return result

    def note(self, result: Any, sources: list[Tensor]) -> None:
        """Record that the tensors of a result come from the origins of all its sources."""
        origins = [self.known[source] for source in sources]
        joined = Origin(max(o.depth for o in origins), frozenset().union(*(o.layers for o in origins)))
        for output in tensors_in(result):
            self.known[output] = joined

    def layer_of(self, parameter: str) -> nn.Module:
        """The module that holds a parameter."""
        return self._network.get_submodule(parameter.rpartition(".")[0])

    def parameters_in(self, args: Any, kwargs: Mapping[str, Any]) -> set[str]:
        """Parameters among the arguments, directly or in tensors computed from parameters alone."""
        return {self._names[t] for t in tensors_in((args, kwargs)) if t in self._names}

    def entered(self, name: str, module: nn.Module, inputs: list[Tensor]) -> None:
        self.seen.add(name)

    def left(self, name: str, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        sources = [t for t in inputs if t in self.known]
        if not sources or not isinstance(module, (*WEIGHT_LAYERS, self._activations)):
            return
        self.note(output, sources)
        for tensor in tensors_in(output):
            depth, layers = self.known[tensor]
            if isinstance(module, WEIGHT_LAYERS):
                if _IMAGE in layers:
                    self.first.add(name)
                self.known[tensor] = Origin(depth, frozenset([name]))
            else:
                self.known[tensor] = Origin(depth + 1, layers)
                self.depths[name] = depth + 1

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        given = list(tensors_in((args, kwargs or {})))
        names = [self._names[t] for t in given if t in self._names]
        if names and not isinstance(self.innermost, self.opaque) and not any(t in self.known for t in given):
            for output in tensors_in(result):
                self._names[output] = names[0]
        return result


def few(images: Tensor) -> Tensor:
    """[3, ...]: the first of some images, as a copy, since a network may write into it."""
    return images[:1].detach().repeat(BATCH, *(1 for _ in images.shape[1:]))


def follow(network: nn.Module, images: Tensor) -> Flow:
    """Trace a dry run of any network on its first image, in evaluation mode.

    Raises:
        QuantizationError: the network does not run on one tensor of such images.
    """
    flow = Flow(network)
    with evaluation_mode(network):
        flow.run(images, QuantizationError)
    return flow
