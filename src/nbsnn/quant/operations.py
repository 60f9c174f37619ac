"""Functions allowed between two activations: those of torch that are affine, and the remedy for others.

Affine functions commute with the mean over time, so spikes can pass through them. This is an allowlist: other functions raise
    an error.
"""

from typing import NamedTuple

from torch import nn

# Functions that choose, copy and arrange values, and compute none.
ARRANGING = {
    "cat", "concat", "concatenate", "stack", "hstack", "dstack", "flatten", "reshape", "view", "unflatten", "squeeze",
    "unsqueeze", "permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "mT", "mH", "contiguous", "clone",
    "detach", "to", "float", "double", "type", "type_as", "data", "pad", "getitem", "chunk", "split", "tensor_split", "narrow",
    "narrow_copy", "index_select", "select", "unbind", "expand", "repeat_interleave", "repeat", "tile", "expand_as", "view_as",
    "reshape_as", "flip", "roll", "rot90", "unfold", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "written",
}  # fmt: skip
MOVING_AXES = {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims"}
AFFINE = ARRANGING | {
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "add", "radd", "iadd", "sub", "rsub", "isub", "subtract", "neg", "mul", "rmul", "imul", "multiply",
    "div", "truediv", "itruediv", "divide", "matmul", "rmatmul", "bmm", "mm", "einsum", "mean", "sum", "interpolate",
}  # fmt: skip
DROPOUT = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout"}
PRODUCTS = {"mul", "rmul", "imul", "multiply", "matmul", "rmatmul", "bmm", "mm", "einsum"}
QUOTIENTS = {"div", "truediv", "itruediv", "divide"}
WEIGHINGS = {
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear",
    "matmul", "rmatmul", "bmm", "mm", "einsum",
}  # fmt: skip

_RELU = {"relu", "relu6", "leaky_relu", "prelu", "threshold", "elu", "selu", "celu", "rrelu"}
_CLIP = {"hardsigmoid", "clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "maximum", "minimum"}
POINTWISE = {
    "sigmoid", "tanh", "gelu", "silu", "mish", "softplus", "softsign", "hardswish", "logsigmoid", "exp",
    "tanhshrink", "softshrink", "hardshrink",
}  # fmt: skip
_EXPONENTIAL = {"elu", "selu", "celu"}
# Steps and choices by value: their results are no sums of spikes.
_DECIDING = {
    "sign", "round", "floor", "ceil", "trunc", "frac", "floordiv", "floor_divide", "remainder", "fmod", "ge", "gt", "le", "lt",
    "eq", "ne", "where", "argmax", "argmin", "argsort", "sort", "topk", "kthvalue", "median", "nonzero", "masked_select",
    "masked_fill", "heaviside",
}  # fmt: skip
_AT_THE_END = " between layers, and leave it out at the end: return the logits, and apply it to the result"
_SOFTMAX = {"softmax", "log_softmax", "softmin"}
_NORMS = {"layer_norm", "group_norm", "instance_norm", "local_response_norm", "rms_norm", "normalize"}
_OTHER_POOLS = {"max_pool", "max_pool3d", "adaptive_max_pool3d", "fractional_max_pool2d", "fractional_max_pool3d"} | {
    f"max_unpool{axes}d" for axes in (1, 2, 3)
}  # "max_pool": those of MODULES below
_GATES = {"glu", "multi_head_attention_forward", "scaled_dot_product_attention"}
_RECURRENT = {"rnn_tanh", "rnn_relu", "lstm", "gru", "rnn_tanh_cell", "rnn_relu_cell", "lstm_cell", "gru_cell"}

_PREPARED = {"hardsigmoid", "relu6", "hardtanh", "leaky_relu", "prelu", "rrelu", "threshold"}
_BY_ITSELF = ", or give images or an example, with which quantize rewrites leaky and clipped activations"

# torch's modules by their function; modules whose function is in AFFINE have no entry.
MODULES: dict[str, tuple[type[nn.Module], ...]] = {
    "relu6": (nn.ReLU6,), "hardtanh": (nn.Hardtanh,), "leaky_relu": (nn.LeakyReLU,), "prelu": (nn.PReLU,),
    "elu": (nn.ELU,), "selu": (nn.SELU,), "celu": (nn.CELU,), "rrelu": (nn.RReLU,), "threshold": (nn.Threshold,),
    "sigmoid": (nn.Sigmoid,), "tanh": (nn.Tanh,), "gelu": (nn.GELU,), "silu": (nn.SiLU,), "mish": (nn.Mish,),
    "softplus": (nn.Softplus,), "softsign": (nn.Softsign,), "hardsigmoid": (nn.Hardsigmoid,), "hardswish": (nn.Hardswish,),
    "logsigmoid": (nn.LogSigmoid,), "tanhshrink": (nn.Tanhshrink,), "softshrink": (nn.Softshrink,),
    "hardshrink": (nn.Hardshrink,), "softmax": (nn.Softmax, nn.Softmax2d), "log_softmax": (nn.LogSoftmax,),
    "softmin": (nn.Softmin,), "layer_norm": (nn.LayerNorm,), "group_norm": (nn.GroupNorm,), "rms_norm": (nn.RMSNorm,),
    "instance_norm": (nn.modules.instancenorm._InstanceNorm,), "local_response_norm": (nn.LocalResponseNorm, nn.CrossMapLRN2d),
    "max_pool": (
        nn.MaxPool3d, nn.AdaptiveMaxPool3d, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d, nn.modules.pooling._MaxUnpoolNd,
    ),
    "lp_pool2d": (nn.modules.pooling._LPPoolNd,),
    "glu": (nn.GLU,), "multi_head_attention_forward": (nn.MultiheadAttention,),
    "lstm": (nn.RNNBase, nn.modules.rnn.RNNCellBase), "bilinear": (nn.Bilinear,),
}  # fmt: skip


def moves_batch_axis(attribute: str, axes: int) -> bool:
    """Whether an attribute of a tensor of so many axes swaps the batch axis with another one."""
    return attribute in ("T", "H") or (attribute in ("mT", "mH") and axes < 3)


class Refusal(NamedTuple):
    """A problem and its remedy."""

    what: str
    remedy: str


def refused_function(name: str, module: nn.Module | None = None) -> Refusal:
    """Why a function that is not affine is an error, and what to write instead.

    Args:
        name: of the function, as returned by `tracing.function_name`.
        module: the module that calls it.
    """
    inside = type(module).__name__ if module is not None and type(module).__module__.startswith("torch.nn") else ""
    if name in _EXPONENTIAL:
        kind = f"nn.{inside}" if inside else f"{name}()"
        return Refusal(f"{kind} is exponential below 0, and spike counts are not", "use nn.ReLU or nn.LeakyReLU")
    if name in _DECIDING:
        return Refusal(
            f"{name}() decides by the values of currents",
            "use nn.ReLU, or apply it to the network's result, outside the network",
        )
    if name in _RELU | _CLIP and inside == "ReLU":
        return Refusal(
            "nn.ReLU is an activation that is not quantized",
            "quantize the float network with act_bits < 32, and do not skip this layer",
        )
    if name in _RELU | _CLIP and inside:
        return Refusal(
            f"nn.{inside} is an activation that is not quantized",
            f"use nn.ReLU instead of nn.{inside}, and quantize that network" + (_BY_ITSELF if name in _PREPARED else ""),
        )
    if name in ("maximum", "minimum"):
        return Refusal(
            f"{name}() compares two currents",
            "write self.act = nn.ReLU(), and b + self.act(a - b) for the maximum or a - self.act(a - b) for the minimum",
        )
    if name in _RELU | _CLIP:
        return Refusal(f"{name}() is applied to currents outside a module", "write self.act = nn.ReLU() and call it")
    if name in _OTHER_POOLS:
        return Refusal(
            "this kind of max pooling has no spiking form", "use nn.MaxPool1d, nn.MaxPool2d, or their adaptive forms"
        )
    if name.endswith("_with_indices"):
        return Refusal(
            "max pooling that returns indices has no spiking form", "leave out return_indices, and interpolate instead"
        )
    if "max_pool" in name or name in ("max", "amax"):
        return Refusal(
            f"{name}() is a max pool outside a module",
            "write self.pool = nn.MaxPool2d(...) or nn.AdaptiveMaxPool2d(...), and call it on the output of an activation; "
            "nbsnn.prepare does it",
        )
    if name in POINTWISE:
        return Refusal(
            f"{name}() is smooth, and spike counts are not",
            "use nn.ReLU" + (_AT_THE_END if name in ("sigmoid", "logsigmoid") else ""),
        )
    if name in _SOFTMAX:
        return Refusal(f"{name}() is applied to currents", "leave it out: return the logits, and apply it to the result")
    if name in _NORMS:
        return Refusal(f"{name}() depends on the data of each step", "use batch norm, which folds into the weights")
    if name in _GATES | {"bilinear"}:
        return Refusal(f"{name}() multiplies two currents", "use convolutions or linear layers, whose weights are constant")
    if name in _RECURRENT:
        return Refusal(f"{name}() has a state", "use convolutions or linear layers over the whole input")
    return Refusal(
        f"{name}() is applied to currents and is not known to be affine",
        "between neurons write only sums, products with constants, convolutions, linear layers, average pools, reshapes",
    )


def refused_module(module: nn.Module) -> Refusal | None:
    """Why a network that calls this torch module on currents cannot become a spiking one; None if unknown."""
    for name, classes in MODULES.items():
        if isinstance(module, classes):
            own = next(cls for cls in type(module).__mro__ if cls.__module__.startswith("torch.nn"))
            return refused_function(name, module if type(module) is own else None)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        return batch_statistics(module)
    return None


def batch_statistics(module: nn.Module | None) -> Refusal:
    """Why batch norm without running statistics is an error."""
    what = "batch norm uses the statistics of the batch"
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        return Refusal(what, "build it with track_running_stats=True")
    return Refusal(what, "give F.batch_norm training=self.training")
