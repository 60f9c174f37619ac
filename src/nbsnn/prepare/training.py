"""What a network does in training alone, where the recorded run in evaluation mode does nothing: functional dropout."""

from torch import fx, nn

from nbsnn.prepare.rewriting import Rewriting, function_of

_MODULES: dict[str, type[nn.Module]] = {
    "dropout": nn.Dropout, "dropout1d": nn.Dropout1d, "dropout2d": nn.Dropout2d, "dropout3d": nn.Dropout3d,
    "alpha_dropout": nn.AlphaDropout,
}  # fmt: skip


def call_dropout(rewriting: Rewriting) -> None:
    """Turn functional dropout, which the recorded run skipped, into modules, which are at work in training mode."""
    for node in list(rewriting.graph.nodes):
        name = function_of(node)
        if name not in _MODULES or node.op != "call_function":
            continue
        given = dict(zip(("input", "p", "training"), node.args, strict=False)) | dict(node.kwargs)
        x = given.get("input")
        if isinstance(x, fx.Node) and not given.get("training") and isinstance(given.get("p", 0.5), float):
            path = rewriting.add(node.meta["scope"], "dropout", _MODULES[name](given.get("p", 0.5)))
            rewriting.replace(node, rewriting.call(path, x, at=node))
