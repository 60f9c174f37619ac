"""Sums over stacked signals: stack([x, y], 1).mean(1) is (x + y) / 2, without an axis that layers do not know. And x.squeeze()
names its axes, so that one image keeps that of the batch.
"""

import operator
from functools import reduce

import torch
from torch import fx

from nbsnn.prepare.graph import writes
from nbsnn.prepare.rewriting import Rewriting, function_of


def sum_stacks(rewriting: Rewriting) -> None:
    """Turn a stack of which only sums or means over its new axis are used into a sum of its parts."""
    rewriting.graph.eliminate_dead_code(writes)  # sizes that only assertions read
    for node in list(rewriting.graph.nodes):
        parts = node.args[0] if node.args else node.kwargs.get("tensors")
        if function_of(node) != "stack" or not isinstance(parts, (list, tuple)):
            continue
        if not node.users or not all(_reduces_the_axis_of(node, user) for user in node.users):
            continue
        for user in list(node.users):
            user.meta.setdefault("shape", parts[0].meta["shape"])
            total = reduce(lambda x, y: rewriting.function(operator.add, (x, y), at=user), parts)
            if function_of(user) == "mean":
                total = rewriting.function(operator.truediv, (total, len(parts)), at=user)
            assert isinstance(total, fx.Node)
            rewriting.changed(user, f"{function_of(user)}() over a stack became a sum of its {len(parts)} parts")
            rewriting.replace(user, total)
        rewriting.graph.erase_node(node)


def name_squeezed_axes(rewriting: Rewriting) -> None:
    """Let x.squeeze() drop the axes of one place but the first, also for a single image."""
    for node in list(rewriting.graph.nodes):
        x = node.args[0] if node.args else None
        if function_of(node) != "squeeze" or len(node.args) > 1 or node.kwargs or not isinstance(x, fx.Node):
            continue
        if x.meta.get("data") and x.meta.get("shape"):
            axes = tuple(axis for axis, size in enumerate(x.meta["shape"]) if size == 1 and axis > 0)
            new = rewriting.function(torch.squeeze, (x, axes), at=node)
            rewriting.changed(new, "squeeze() without axes keeps the axis of the batch, also for one image")
            rewriting.replace(node, new)


def _axis(node: fx.Node) -> object:
    """The axis of a stack, a mean or a sum; None for all axes."""
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0 if function_of(node) == "stack" else None)
    return axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis


def _reduces_the_axis_of(stack: fx.Node, node: fx.Node) -> bool:
    """Whether a call is a sum or a mean over the axis of a stack."""
    keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    if function_of(node) not in ("mean", "sum") or keeps is not False or "dtype" in node.kwargs:
        return False
    rank, axis, made = len(stack.meta["shape"]), _axis(node), _axis(stack)
    return isinstance(axis, int) and isinstance(made, int) and axis % rank == made % rank
