"""Find the weight layers that a batch norm follows directly: it compensates for their scale and mean.

The outputs of the layers are traced: in a run on an image, or, without an image, in a copy of the network on the meta device
    with images of common sizes. If that fails, or if an output is used elsewhere too, no norm is assumed: preserving a scale
        does no harm before a norm, but losing one without a norm does.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nbsnn.errors import NbsnnError, QuantizationError
from nbsnn.quant.flow import few
from nbsnn.surgery import evaluation_mode
from nbsnn.tracing import Tracer, tensors_in

# Functions allowed between: homogeneous, and a shift per channel remains a shift per channel.
_BETWEEN = {
    "flatten", "reshape", "view", "squeeze", "unsqueeze", "contiguous", "clone", "avg_pool1d", "avg_pool2d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "interpolate", "dropout", "dropout1d",
    "dropout2d", "neg", "to", "float", "double", "type", "data", "detach",
}  # fmt: skip
_SIDES = (32, 224, 28, 64, 8, 16, 96, 128, 227, 256, 299, 12, 6)  # image sizes of common data sets, if no image is given


def normed_layers(model: nn.Module, layers: Collection[str], example: Tensor | None = None) -> set[str]:
    """Those of `layers` (names of weight layers) whose every output goes to a batch norm and nowhere else.

    Args:
        model: a float network.
        example: [B, ...], images or rows of features, the first of which is traced.
    """
    if example is not None:
        with evaluation_mode(model):
            return _followed(model, layers, few(example))
    bare = _without_numbers(model)
    dtype = next((p.dtype for p in bare.parameters() if p.is_floating_point()), torch.float32)
    for shape in _shapes(model, layers):
        try:
            return _followed(bare, layers, torch.empty(2, *shape, dtype=dtype, device="meta"))
        except (NbsnnError, RuntimeError, NotImplementedError, TypeError):  # another size, or code that reads values
            continue
    return set()


def _shapes(model: nn.Module, layers: Collection[str]) -> Iterator[tuple[int, ...]]:
    spec = getattr(model, "model_spec", None)
    if spec is not None and not spec.is_own:
        yield spec.in_channels, spec.image_size, spec.image_size
    first = model.get_submodule(next(iter(layers))) if layers else None
    if isinstance(first, nn.Linear):
        yield (first.in_features,)
    if isinstance(first, nn.Conv1d):
        yield from ((first.in_channels, length) for length in (128, 1000, 4000))
    channels = first.in_channels if isinstance(first, nn.Conv2d) else 3
    yield from ((channels, side, side) for side in _SIDES)


def _followed(model: nn.Module, layers: Collection[str], images: Tensor) -> set[str]:
    run = _Follower(layers)
    output = run.follow(model, images, None, error=QuantizationError)
    returned = {run.known[t] for t in tensors_in(output) if t in run.known}
    return {name for name in run.normed - run.used_otherwise - returned if name is not None}  # None is the image


def _without_numbers(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode on the meta device, without hooks."""
    tensors: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    tensors |= {id(b): b.detach().to("meta") for b in model.buffers()}
    bare: nn.Module = copy.deepcopy(model, tensors).eval()
    for module in bare.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return bare


class _Follower(Tracer):
    """What is known of a tensor: the layer whose output it is, up to shape and a factor."""

    def __init__(self, layers: Collection[str]) -> None:
        super().__init__()
        self.layers = layers
        self.normed: set[str | None] = set()
        self.used_otherwise: set[str | None] = set()

    def called(self, func: Callable[..., Any], name: str, args: Any, kwargs: Mapping[str, Any], sources: list[Tensor]) -> Any:
        result = func(*args, **kwargs)
        origins = {self.known[source] for source in sources}
        first = args[0] if args else kwargs.get("input")
        # F.batch_norm without a module is not recalibrated after quantization, so it does not compensate before training.
        if name == "batch_norm" and first is sources[0] and isinstance(self.innermost, _BatchNorm):
            self.normed |= origins
        elif name in _BETWEEN and isinstance(result, Tensor):
            self.known[result] = self.known[sources[0]]
        else:
            self.used_otherwise |= origins
        return result

    def left(self, name: str, module: nn.Module, inputs: list[Tensor], output: Any) -> None:
        if name in self.layers and isinstance(output, Tensor):
            self.known[output] = name
