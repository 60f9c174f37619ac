"""What a recorded network computes that spikes cannot represent: all of it at once, each with its reason and remedy."""

from torch import fx, nn

from nbsnn.pooling import MAX_POOLS, pool_oddity
from nbsnn.prepare.graph import writes
from nbsnn.prepare.rewriting import Rewriting, function_of
from nbsnn.quant.flow import WEIGHT_LAYERS
from nbsnn.quant.operations import (
    AFFINE,
    DROPOUT,
    PRODUCTS,
    QUOTIENTS,
    Refusal,
    batch_statistics,
    refused_function,
    refused_module,
)

_RECURRENT = (nn.RNNBase, nn.modules.rnn.RNNCellBase)
_ATTENTION = ("scaled_dot_product_attention", "multi_head_attention_forward")


def refuse_the_rest(rewriting: Rewriting) -> None:
    """Record every call of a rewritten graph that is not allowed between neurons."""
    rewriting.graph.eliminate_dead_code(writes)  # of functions that activations replaced
    for node in rewriting.graph.nodes:
        if not node.meta.get("data") or node.op not in ("call_module", "call_function", "call_method"):
            continue
        refusal = _of_module(rewriting, node) if node.op == "call_module" else _of_function(node)
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
    if (refusal := refused_module(module)) is not None:
        return refusal
    if isinstance(module, MAX_POOLS) and (oddity := pool_oddity(module)) is not None:
        return Refusal(f"{type(module).__name__} {oddity}", "use nn.MaxPool2d or nn.MaxPool1d itself, without return_indices")
    if isinstance(module, nn.Conv3d) or (isinstance(module, WEIGHT_LAYERS) and _data(node) > 1):
        return Refusal(f"{type(module).__name__} has no quantized form", "use layers for rows or planes")
    return None


def _of_function(node: fx.Node) -> Refusal | None:
    name = function_of(node).strip("_")
    sources = _data(node)
    if name in ("size", "numel", "nelement", "shape") or node.target is getattr:
        return refused_transpose(name)
    if name in _ATTENTION:
        return Refusal("attention multiplies two signals", "use convolutions or linear layers, whose weights are constant")
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


def refused_transpose(name: str) -> Refusal | None:
    """Attributes that swap the batch axis with another one."""
    if name in ("T", "mT", "H", "mH"):
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
