"""What a recorded network computes that spikes cannot represent: all of it at once, each with its reason and remedy."""

from torch import fx, nn

from nbsnn.pooling import MAX_POOLS, pool_oddity
from nbsnn.prepare.graph import writes
from nbsnn.prepare.modules import SignedActivation
from nbsnn.prepare.rewriting import Rewriting, function_of
from nbsnn.quant.flow import WEIGHT_LAYERS
from nbsnn.quant.operations import (
    AFFINE,
    DROPOUT,
    MODULES,
    POINTWISE,
    PRODUCTS,
    QUOTIENTS,
    Refusal,
    batch_statistics,
    moves_batch_axis,
    refused_function,
    refused_module,
)

_RECURRENT = (nn.RNNBase, nn.modules.rnn.RNNCellBase)
_JUMP = Refusal("threshold() jumps from one value to another", "use nn.ReLU")
_TIMES = {"mul", "rmul", "imul", "multiply"}
_PLUS = {"add", "radd", "iadd", "sub", "rsub", "isub", "subtract", "neg"}
_ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward")


def refuse_the_rest(rewriting: Rewriting) -> None:
    """Record every call of a rewritten graph that is not allowed between neurons."""
    rewriting.graph.eliminate_dead_code(writes)  # of functions that activations replaced
    for node in rewriting.graph.nodes:
        if not node.meta.get("data") or node.op not in ("call_module", "call_function", "call_method"):
            continue
        refusal = _of_module(rewriting, node) if node.op == "call_module" else _of_function(rewriting, node)
        if refusal is not None:
            rewriting.refuse(node, *refusal)


def _of_module(rewriting: Rewriting, node: fx.Node) -> Refusal | None:
    module = rewriting.module(node)
    if rewriting.is_kept(str(node.target)):
        return None
    if isinstance(module, _RECURRENT):
        return Refusal(
            f"{type(module).__name__} is recurrent: it keeps a state of its own",
            "use convolutions or linear layers over the whole input",
        )
    if isinstance(module, nn.MultiheadAttention):
        return Refusal("attention multiplies two signals", "use convolutions or linear layers, whose weights are constant")
    if isinstance(module, nn.Threshold):  # of another kind than nn.ReLU, which it would have become
        return _JUMP
    if (refusal := refused_module(module)) is not None:
        return refusal
    if isinstance(module, MAX_POOLS) and (oddity := pool_oddity(module)) is not None:
        return Refusal(f"{type(module).__name__} {oddity}", "use nn.MaxPool2d or nn.MaxPool1d itself, without return_indices")
    if isinstance(module, nn.Conv3d) or (isinstance(module, WEIGHT_LAYERS) and _data(node) > 1):
        return Refusal(f"{type(module).__name__} has no quantized form", "use layers for rows or planes")
    return None


def _of_function(rewriting: Rewriting, node: fx.Node) -> Refusal | None:
    name = function_of(node).strip("_")
    sources = _data(node)
    if name in ("size", "numel", "nelement", "shape") or node.target is getattr:
        return refused_transpose(name, len(node.args[0].meta["shape"]))  # type: ignore[union-attr]
    if name == "threshold":
        return _JUMP
    if name in _ATTENTION:
        return Refusal("attention multiplies two signals", "use convolutions or linear layers, whose weights are constant")
    if name in _TIMES and sources == 2 and (swish := _swish(rewriting, node)) is not None:
        what = f"{name}() multiplies a signal by a function of itself, as {swish}() does, and is smooth"
        return Refusal(what, refused_function(swish).remedy)
    weighted = name.startswith("conv") or name in ("linear", "batch_norm")
    if (name in PRODUCTS or name in QUOTIENTS or weighted) and sources > 1:
        what = "a gate or attention" if name in PRODUCTS else "weights that depend on the image"
        return Refusal(
            f"{name}() multiplies or divides two signals ({what})", "multiply and divide by constants or parameters only"
        )
    if name in QUOTIENTS and node.args[1:] and isinstance(node.args[1], fx.Node) and node.args[1].meta.get("data"):
        return Refusal(f"{name}() divides by a signal", "divide by constants or parameters only")
    if name == "batch_norm" and (node.args[5:6] == (True,) or node.kwargs.get("training")):
        return batch_statistics(None)
    if name in DROPOUT:
        at_work = True in node.args[1:4] or node.kwargs.get("training", False)
        return Refusal("dropout is at work in evaluation too", "use nn.Dropout") if at_work else None
    if name in ("max", "amax"):
        return Refusal(f"{name}() is a maximum over an axis, not a pool", "use nn.MaxPool2d or nn.AdaptiveMaxPool2d")
    return None if name in AFFINE or name == "batch_norm" else refused_function(name)


def _swish(rewriting: Rewriting, node: fx.Node) -> str | None:
    """The function that a product of a signal x and a function of x alone is like; None for another product."""
    for x, factor in ((node.args[0], node.args[-1]), (node.args[-1], node.args[0])):
        path: list[str] = []
        while isinstance(factor, fx.Node) and factor is not x:
            data = [n for n in factor.all_input_nodes if n.meta.get("data")]
            path.append(_pointwise(rewriting, factor))
            factor = data[0] if len(data) == 1 and path[-1] else None
        if factor is x and path:
            return "silu" if "sigmoid" in path else "mish" if "softplus" in path else "hardswish"
    return None


def _pointwise(rewriting: Rewriting, node: fx.Node) -> str:
    """The name of a function of each value alone, such as "sigmoid", or of a sum or product with constants; else empty."""
    if node.op != "call_module":
        name = function_of(node).strip("_")
        return name if name in _TIMES | QUOTIENTS | _PLUS | POINTWISE else ""
    module = rewriting.module(node)
    if isinstance(module, (nn.ReLU, SignedActivation)):
        return "relu"
    return next((name for name in POINTWISE if isinstance(module, MODULES.get(name, ()))), "")


def refused_transpose(name: str, axes: int) -> Refusal | None:
    """Attributes that swap the batch axis of a tensor of so many axes with another one."""
    if moves_batch_axis(name, axes):
        return Refusal(f".{name} moves the batch axis", "keep the batch axis first; use x.transpose(1, 2) and the like")
    return None


def _data(node: fx.Node) -> int:
    """How many arguments of a call depend on the image: x · x counts twice."""
    found: list[fx.Node] = []

    def note(argument: fx.Node) -> fx.Node:
        found.append(argument)
        return argument

    fx.node.map_arg((node.args, node.kwargs), note)
    return sum(bool(argument.meta.get("data")) for argument in found)
