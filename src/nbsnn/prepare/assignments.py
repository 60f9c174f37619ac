"""Writes into parts of a tensor, `y[:, 1:] = x[:, :-1]`: each makes a new tensor, which is used from there on."""

from typing import Any

from torch import Tensor
from torch.overrides import wrap_torch_function

from nbsnn.prepare.rewriting import Rewriting, function_of


@wrap_torch_function(lambda x, index, value: (x, value))  # one function for the tracers
def written(x: Tensor, index: Any, value: Any) -> Tensor:
    """x with other values at an index."""
    result = x.clone()
    result[index] = value
    return result


def call_writes(rewriting: Rewriting) -> None:
    """Turn writes of signals into calls of `written`, whose result is read by whatever comes later."""
    for node in list(rewriting.graph.nodes):
        if function_of(node) == "setitem" and node.meta.get("data"):
            new = rewriting.function(written, node.args, at=node)
            rewriting.changed(new, "a write into a part of a tensor became a new tensor")
            rewriting.replace(node, new)
