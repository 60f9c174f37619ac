"""The audit that ends every conversion: a dry run that refuses whatever would make spikes differ from activations in silence.

Between two neurons only affine functions may stand: they commute with the average over time. The audit watches every
torch function on tensors that descend from the image, names the layer of the first one that is not affine, and says what
to write instead. On the way it measures the depth of the network.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from nbsnn.errors import ConversionError
from nbsnn.spiking.neuron import IFNeuron

_AFFINE = {
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "add", "radd", "iadd", "sub", "rsub", "isub", "subtract", "neg", "mul", "rmul", "imul", "multiply",
    "div", "truediv", "itruediv", "divide", "matmul", "rmatmul", "bmm", "mm", "einsum",
    "cat", "concat", "concatenate", "stack", "flatten", "reshape", "view", "unflatten", "squeeze", "unsqueeze",
    "permute", "transpose", "movedim", "swapaxes", "contiguous", "clone", "detach", "to", "float", "double", "type",
    "mean", "sum", "pad", "getitem", "chunk", "split", "narrow", "index_select", "expand", "repeat_interleave",
    "interpolate", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "data",
}  # fmt: skip
_PRODUCTS = {"mul", "rmul", "imul", "multiply", "matmul", "rmatmul", "bmm", "mm", "einsum"}
_QUOTIENTS = {"div", "truediv", "itruediv", "divide"}
CONSTANTS = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "empty_like"}
METADATA = {"size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "is_floating_point", "len", "format"}

_RELU = {"relu", "relu6", "leaky_relu", "prelu", "threshold", "elu", "selu", "celu", "rrelu"}
_CLIP = {"clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "maximum", "minimum"}
_SMOOTH = {"sigmoid", "tanh", "gelu", "silu", "mish", "softplus", "hardsigmoid", "hardswish", "logsigmoid", "exp"}
_SOFTMAX = {"softmax", "log_softmax", "softmin"}
_NORMS = {"layer_norm", "group_norm", "instance_norm", "local_response_norm", "rms_norm", "normalize"}
DROPOUT = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout"}


def audit(network: nn.Module, folded: Tensor) -> int:
    """Run `network` (neurons in place) on folded images [T·B, C, H, W] and refuse what does not convert.

    Returns:
        The number of neurons on the longest path from image to head.
    Raises:
        ConversionError: names the layer and what to write instead.
    """
    run = _Audit(network, folded)
    handles = [hook for name, module in network.named_modules() for hook in run.watch(name, module)]
    try:
        with torch.no_grad(), run:
            output = network(folded)
    except ConversionError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConversionError(f"the example of shape {list(folded.shape[1:])} does not run at {run.place}: {reason}") from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor):
        raise ConversionError(f"the network returns a {type(output).__name__}; return the logits alone, as one tensor")
    if output not in run.depth:
        raise ConversionError("the network's output does not descend from the image by torch functions the audit can see")
    return int(run.depth[output])


class _Audit(TorchFunctionMode):
    def __init__(self, network: nn.Module, folded: Tensor) -> None:
        super().__init__()
        self.batch = len(folded)
        self.depth: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # of each tensor that descends from the image
        self.depth[folded] = 0
        self.path: list[tuple[str, nn.Module]] = []
        self.called: set[nn.Module] = set()

    @property
    def place(self) -> str:
        """The innermost module that is running, in words."""
        return (self.path[-1][0] if self.path else "") or "the network's own forward"

    def watch(self, name: str, module: nn.Module) -> Iterable[Any]:
        """Hooks that follow the path of modules, and the neurons' part in the depth."""

        def enter(_: nn.Module, args: Any) -> None:
            self.path.append((name, module))
            if isinstance(module, IFNeuron):
                self._enter_neuron(name, module, args[0])

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(module, IFNeuron):
                self.depth[output] = self.depth[args[0]] + 1
            self.path.pop()

        return module.register_forward_pre_hook(enter), module.register_forward_hook(leave)

    def _enter_neuron(self, name: str, module: nn.Module, current: Tensor) -> None:
        if module in self.called:
            raise ConversionError(
                f"{name} is called more than once; a neuron stands in one place: give each place an nn.ReLU of its own"
            )
        self.called.add(module)
        if current not in self.depth:
            raise ConversionError(f"the current of {name} does not descend from the image by torch functions the audit can see")

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sources = [t for t in tensors_in((args, kwargs)) if t in self.depth]
        if not sources or (self.path and isinstance(self.path[-1][1], IFNeuron)):
            return func(*args, **kwargs)
        name = function_name(func)
        affine = self._check(func, name, args, kwargs, len(sources))
        result = func(*args, **kwargs)
        outputs = list(tensors_in(result))
        if not affine:
            return result
        depth = max(self.depth[source] for source in sources)
        for output in outputs:
            self._check_batch_axis(name, sources[0], output, reduced=_reduces_first_axis(name, args, kwargs))
            self.depth[output] = depth
        return result

    def _check(self, func: Callable[..., Any], name: str, args: Any, kwargs: Mapping[str, Any], sources: int) -> bool:
        """Refuse, or say whether the result is a current (True) or a constant or a number (False)."""
        if name in CONSTANTS or name in METADATA or (func.__name__ == "__get__" and name != "data"):
            if name in ("T", "mT", "H", "mH"):
                self._refuse(f".{name} moves the batch axis", "keep the batch axis first; use x.transpose(1, 2) and the like")
            return False
        if name in DROPOUT:
            if _argument(func, args, kwargs, "training"):
                self._refuse("dropout is in training mode", "call model.eval() before to_spiking")
            return True
        if name == "batch_norm":
            if _argument(func, args, kwargs, "training"):
                self._refuse(
                    "batch norm uses the statistics of the batch",
                    "call model.eval() before to_spiking, and keep track_running_stats=True",
                )
            return True
        if name not in _AFFINE:
            self._refuse_function(name)
        later = _is_current((args[1:], {k: v for k, v in kwargs.items() if k not in ("input", "self")}), self.depth)
        bilinear = name in _QUOTIENTS or name.startswith("conv") or name == "linear"
        if (name in _PRODUCTS and sources > 1) or (bilinear and later):
            self._refuse(f"{name}() of two currents", "multiply or divide currents by constants or parameters only")
        if kwargs.get("rounding_mode") is not None:
            self._refuse(f"{name}() rounds currents", "leave rounding to the quantized activations")
        if name == "index_select" and _argument_at(args, kwargs, 1, "dim") in (0, -args[0].dim()):
            self._refuse("index_select() picks from the batch axis", "keep axis 0 first and untouched")
        if name == "getitem" and not _keeps_first_axis(args[1]):
            self._refuse("indexing picks from the batch axis", "index as x[:, ...]")
        return True

    def _check_batch_axis(self, name: str, source: Tensor, output: Tensor, *, reduced: bool) -> None:
        if not output.is_floating_point():
            self._refuse(f"{name}() turns currents into {output.dtype}", "keep them in floating point")
        moved = name in ("permute", "transpose", "movedim", "swapaxes") and output.stride(0) != source.stride(0)
        if output.dim() == 0 or output.shape[0] != self.batch or moved or reduced:
            self._refuse(
                f"{name}() turns shape {list(source.shape)} into {list(output.shape)}, which does not keep the batch axis",
                "keep axis 0 first and untouched, as x.flatten(1) does",
            )

    def _refuse_function(self, name: str) -> NoReturn:
        module = self.path[-1][1] if self.path else None
        inside = type(module).__name__ if module is not None and type(module).__module__.startswith("torch.nn") else ""
        if name in _RELU | _CLIP and inside:
            remedy = "quantize it with nbsnn.quantize and act_bits < 32"
            if inside != "ReLU":
                remedy = f"use nn.ReLU instead of nn.{inside}, and quantize it"
            self._refuse(f"nn.{inside} is an activation that is not quantized", remedy)
        if name in _RELU | _CLIP:
            self._refuse(f"{name}() is applied to currents outside a module", "write self.act = nn.ReLU() and call it")
        if "max_pool" in name or name in ("max", "amax"):
            self._refuse("max pooling does not commute with spikes", "use the convolution's stride, or average pooling")
        if name in _SMOOTH:
            self._refuse(f"{name}() is smooth, and neurons count", "use nn.ReLU")
        if name in _SOFTMAX:
            self._refuse(f"{name}() is applied to currents", "return the logits, and apply it to the spiking network's result")
        if name in _NORMS:
            self._refuse(f"{name}() depends on the data of each step", "use batch norm, which folds into the weights")
        self._refuse(
            f"{name}() is applied to currents and is not known to be affine",
            "between neurons write only sums, products with constants, convolutions, linear layers, average pools, reshapes",
        )

    def _refuse(self, what: str, remedy: str) -> NoReturn:
        raise ConversionError(f"{what} at {self.place}; {remedy}")


def function_name(func: Callable[..., Any]) -> str:
    """The plain name of a torch function: "add" for `Tensor.__add__`, "data" for the reading of `.data`."""
    if func.__name__ == "__get__":
        return str(getattr(func, "__self__", func).__name__)
    return func.__name__.strip("_")


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


def _is_current(tree: Any, depth: WeakTensorKeyDictionary) -> bool:
    return any(t in depth for t in tensors_in(tree))


def _argument(func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any], name: str) -> Any:
    try:
        bound = inspect.signature(func).bind(*args, **kwargs)
    except ValueError:  # a builtin, such as torch.dropout: its one flag before the last says "training"
        return any(value is True for value in (*args[:6], kwargs.get("train"), kwargs.get(name)))
    bound.apply_defaults()
    return bound.arguments.get(name)


def _argument_at(args: Any, kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def _reduces_first_axis(name: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    if name not in ("mean", "sum"):
        return False
    axes = _argument_at(args, kwargs, 1, "dim")
    chosen = axes if isinstance(axes, (tuple, list)) else [axes]
    return any(axis is None or axis % args[0].dim() == 0 for axis in chosen)


def _keeps_first_axis(index: Any) -> bool:
    first = index[0] if isinstance(index, tuple) else index
    return first is Ellipsis or first == slice(None)
