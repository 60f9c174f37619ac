"""Sums over stacked signals: stack([x, y], 0).mean(0) is (x + y) / 2, which keeps the batch axis first."""

import operator
from functools import reduce

from torch import fx

from nbsnn.prepare.graph import writes
from nbsnn.prepare.rewriting import Rewriting, function_of


def sum_stacks(rewriting: Rewriting) -> None:
    """Turn a stack along axis 0 of which only sums or means over that axis are used into a sum of its parts."""
    rewriting.graph.eliminate_dead_code(writes)  # sizes that only assertions read
    for node in list(rewriting.graph.nodes):
        parts = node.args[0] if node.args else node.kwargs.get("tensors")
        if function_of(node) != "stack" or _axis(node) != 0 or not isinstance(parts, (list, tuple)):
            continue
        if not node.users or not all(_reduces_first_axis(user) for user in node.users):
            continue
        for user in list(node.users):
            user.meta.setdefault("shape", node.meta["shape"][1:])
            total = reduce(lambda x, y: rewriting.function(operator.add, (x, y), at=user), parts)
            if function_of(user) == "mean":
                total = rewriting.function(operator.truediv, (total, len(parts)), at=user)
            assert isinstance(total, fx.Node)
            rewriting.changed(user, f"{function_of(user)}() over a stack became a sum of its {len(parts)} parts")
            rewriting.replace(user, total)
        rewriting.graph.erase_node(node)


def _axis(node: fx.Node) -> object:
    """The axis of a stack, a mean or a sum; None for all axes."""
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0 if function_of(node) == "stack" else None)
    return axis[0] if isinstance(axis, (list, tuple)) and len(axis) == 1 else axis


def _reduces_first_axis(node: fx.Node) -> bool:
    keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    return function_of(node) in ("mean", "sum") and _axis(node) == 0 and keeps is False and "dtype" not in node.kwargs
