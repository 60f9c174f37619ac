"""The networks of an installed pytorchcv: its families, the smallest model of each, and the smallest images that it runs on."""

import functools
import importlib
import importlib.util
import sys
import types
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NOT_NEEDED = ("requests", "tqdm", "torchvision", "torchvision.ops")
SIZES = (32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 320, 331, 384, 448, 480)
# Functions of one current that can be exact in spikes; a sum or a concatenation may have several.
EXACT = {
    "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "linear", "batch_norm", "relu", "relu_", "relu6", "leaky_relu",
    "leaky_relu_", "prelu", "clamp", "clamp_", "hardtanh", "hardtanh_", "abs", "threshold", "max_pool1d", "max_pool2d",
    "boolean_dispatch", "adaptive_max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "mean", "sum", "add", "iadd", "add_", "radd", "sub", "isub", "rsub", "neg", "cat", "concat", "stack", "interpolate",
    "upsample", "pad", "flatten", "reshape", "view", "view_as", "unflatten", "squeeze", "unsqueeze", "permute", "transpose",
    "contiguous", "clone", "detach", "expand", "expand_as", "getitem", "setitem", "chunk", "split", "narrow", "index_select",
    "dropout", "dropout2d", "dropout_", "feature_dropout", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "tile",
    "repeat", "max_unpool2d", "new_zeros", "zeros_like",
}  # fmt: skip
BY_CONSTANTS = {"mul", "imul", "rmul", "mul_", "div", "truediv", "itruediv", "div_"}
INQUIRIES = {"shape", "size", "dim", "dtype", "device", "get", "numel", "is_cuda", "ndim", "requires_grad", "is_floating_point"}


@functools.cache
def provider() -> Any:
    """pytorchcv.model_provider, without what its downloads and one of its video networks would need."""
    absent = {name: types.ModuleType(name) for name in NOT_NEEDED if not _exists(name)}
    if "torchvision.ops" in absent:
        absent["torchvision.ops"].DeformConv2d = nn.Conv2d  # type: ignore[attr-defined]  # never run: of networks of two inputs
    sys.modules.update(absent)
    try:
        return importlib.import_module("pytorchcv.model_provider")
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}; pip install --no-deps pytorchcv==0.0.74") from None
    finally:
        for name in absent:
            del sys.modules[name]


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def families() -> dict[str, list[str]]:
    """File of the package → names of the models in it."""
    found = defaultdict(list)
    for name, function in provider()._models.items():
        found[function.__module__.rpartition(".")[2]].append(name)
    return dict(found)


def build(name: str, size: tuple[int, int] | None = None) -> nn.Module:
    """A model with random weights, for images of this size where its constructor takes one, or of its own size."""
    make = provider()._models[name]
    options: dict[str, Any] = {"from_audio": False}  # spectra: their package is not needed
    if size is not None:
        options["in_size"] = size
    while True:
        try:
            return make(**options)
        except TypeError as error:
            not_taken = [key for key in options if key in str(error)]
            if not not_taken:
                raise
            options = {key: value for key, value in options.items() if key not in not_taken}


def smallest(names: list[str]) -> str:
    """The model with the fewest parameters."""
    if len(names) == 1:
        return names[0]
    with torch.device("meta"):
        return min(names, key=lambda name: sum(p.numel() for p in build(name).parameters()))


def image_shape(name: str) -> tuple[int, ...] | None:
    """[C, H, W] of the smallest square images that a model runs on, or of its own size; None if it runs on neither."""
    for size in (*((n, n) for n in SIZES), _own_size(name)):
        for device in ("meta", "cpu"):  # shapes alone, unless the code needs values
            try:
                with torch.device(device):
                    net = build(name, size).eval()
                shapes = [shape for c in _channels(net) for shape in ([(c, size[1])] if is_1d(net) else [(c, *size)])]
                return next(shape for shape in shapes if _runs(net, shape, device))
            except StopIteration:
                break
            except Exception:
                continue
    return None


def is_1d(net: nn.Module) -> bool:
    """Whether a network is made of convolutions along one axis."""
    kinds = [module for module in net.modules() if isinstance(module, nn.modules.conv._ConvNd)]
    return bool(kinds) and all(isinstance(module, nn.Conv1d) for module in kinds)


def usual_shape(net: nn.Module) -> tuple[int, ...]:
    """[C, H, W], or [C, L] for convolutions along one axis, with which to ask `nbsnn.check` why a network does not run."""
    return (_channels(net)[-1], 224) if is_1d(net) else (3, 224, 224)


def _own_size(name: str) -> tuple[int, int]:
    """The size of images that a model is made for; the usual one for models of sounds and videos."""
    size = getattr(build(name), "in_size", None)
    return (size[0], size[1]) if isinstance(size, (tuple, list)) else (224, 224)


def _channels(net: nn.Module) -> list[int]:
    """Colors, or what the first layer takes."""
    layers = (module.in_channels for module in net.modules() if isinstance(module, nn.modules.conv._ConvNd))
    return list(dict.fromkeys((3, next(layers, 3))))


@torch.no_grad()
def _runs(net: nn.Module, shape: tuple[int, ...], device: str) -> bool:
    try:
        output = net(torch.zeros(2, *shape, device=device))
    except Exception as error:
        if device == "meta" and (isinstance(error, NotImplementedError) or "meta" in str(error)):
            raise  # the code needs values
        return False
    found = list(tensors(output))
    return bool(found) and all(t.numel() for t in found)


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors of an output."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from tensors(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors(item)


class Inexact(TorchFunctionMode):
    """Notes functions of the image that spikes cannot represent exactly; shares no code with `nbsnn.check`."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._data = {id(image): image}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [t for t in tensors([list(args), kwargs or {}]) if id(t) in self._data]
        name = func.__name__.strip("_") + ("_" if func.__name__.endswith("_") and not func.__name__.endswith("__") else "")
        if given and name not in INQUIRIES:
            self._data |= {id(t): t for t in tensors(result)}
            if not (name in EXACT or (name in BY_CONSTANTS and len({id(t) for t in given}) == 1 and len(given) == 1)):
                self.found.add(f"{name} of two signals" if name in BY_CONSTANTS else name)
        return result


@torch.no_grad()
def inexact(net: nn.Module, image: Tensor) -> list[str]:
    """Names of functions in a network that cannot be exact."""
    with Inexact(image) as seen:
        net(image)
    return sorted(seen.found)
