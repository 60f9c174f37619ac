"""Constants made for a batch of images outside torch's functions, as `torch.FloatTensor(len(x), 8).zero_()`: they become a row
that is repeated for each image of any batch.
"""

import torch
from torch import fx

from nbsnn.prepare.rewriting import Rewriting, function_of
from nbsnn.quant.flow import BATCH
from nbsnn.quant.operations import WEIGHINGS


def repeat_constants(rewriting: Rewriting) -> None:
    """Let each constant with a row for every recorded image have as many rows as there are images."""
    start = next(node for node in rewriting.graph.nodes if node.op == "placeholder")
    for node in list(rewriting.graph.nodes):
        if node.op != "get_attr" or str(node.target) not in rewriting.constants:
            continue
        value = rewriting.constants[str(node.target)]
        users = [user for user in node.users if _meets_a_batch(user, value.dim())]
        if value.dim() < 2 or len(value) != BATCH or not users or not torch.equal(value, value[:1].expand_as(value)):
            continue
        for user in users:
            batch = rewriting.function(torch.Tensor.size, (start, 0), at=user)
            row = rewriting.function(torch.Tensor.narrow, (node, 0, 0, 1), at=user)
            rows = rewriting.function(torch.Tensor.expand, (row, batch, *value.shape[1:]), at=user)
            for made in (batch, row, rows):
                made.meta = {**node.meta, "shape": tuple(value.shape)}
            user.replace_input_with(node, rows)
        rewriting.changed(users[0], f"a constant for a batch of {BATCH} images is repeated for any number of images")


def _meets_a_batch(node: fx.Node, axes: int) -> bool:
    """Whether a call puts a constant of so many axes side by side with values of the images, which have as many axes."""
    shapes = [n.meta.get("shape") for n in node.all_input_nodes if n.meta.get("data")]
    return function_of(node) not in WEIGHINGS | {""} and any(shape is not None and len(shape) == axes for shape in shapes)
