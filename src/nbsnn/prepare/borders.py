"""Borders of −∞ in front of max pools, as padding="same" is often written: borders of 0, where no value is below 0."""

from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from nbsnn.pooling import MAX_POOLS
from nbsnn.prepare.rewriting import Rewriting, function_of
from nbsnn.prepare.signals import signals


def zero_borders(rewriting: Rewriting) -> None:
    """Let max pools read borders of 0 instead of negative ones; a ReLU behind the pool moves in front of the border."""
    for node in list(rewriting.graph.nodes):
        if node.op != "call_module" or not isinstance(rewriting.module(node), MAX_POOLS) or not node.args:
            continue
        border = node.args[0]
        found = _negative_border(rewriting, border) if isinstance(border, fx.Node) and len(border.users) == 1 else None
        if found is None:
            continue
        x, sides = found
        if not signals(rewriting)[x].positive:
            act = next(iter(node.users))
            if len(node.users) > 1 or act.op != "call_module" or not isinstance(rewriting.module(act), nn.ReLU):
                rewriting.refuse(
                    border, "a max pool reads a border below 0 around values of both signs",
                    "use the padding and ceil_mode of nn.MaxPool2d, or put an nn.ReLU before the border",
                )  # fmt: skip
                continue
            x = rewriting.call(str(act.target), x, at=border)
            rewriting.replace(act, node)
        new = rewriting.function(F.pad, (x, sides), at=border)
        rewriting.replace(border, new)
        rewriting.changed(new, "a border below 0 in front of a max pool became one of 0: no value there is below 0")


def _negative_border(rewriting: Rewriting, node: fx.Node) -> tuple[fx.Node, Any] | None:
    """Input and sides of a call that adds a border of one negative number; None for another call."""
    if node.op == "call_module" and isinstance(module := rewriting.module(node), nn.modules.padding._ConstantPadNd):
        given: dict[str, Any] = {"input": node.args[0], "pad": module.padding, "value": module.value}
    elif function_of(node) == "pad":
        given = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | dict(node.kwargs)
    else:
        return None
    value = given.get("value")
    negative = given.get("mode", "constant") == "constant" and isinstance(value, (int, float)) and value < 0
    return (given["input"], tuple(given["pad"])) if negative else None
