"""Weights that are used outside a call of their layer, as in a convolution with a forward of its own: they become layers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from nbsnn.prepare.rewriting import Rewriting, function_of

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_SIGNATURES = {
    "conv1d": _CONV, "conv2d": _CONV, "conv_transpose1d": _TRANSPOSED, "conv_transpose2d": _TRANSPOSED,
    "linear": ("input", "weight", "bias"), "batch_norm": _NORM,
}  # fmt: skip
_DEFAULTS = {
    "bias": None,
    "stride": 1,
    "padding": 0,
    "output_padding": 0,
    "dilation": 1,
    "groups": 1,
    "momentum": 0.1,
    "eps": 1e-5,
}
_LAYERS: dict[str, type[nn.Module]] = {
    "conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv_transpose1d": nn.ConvTranspose1d, "conv_transpose2d": nn.ConvTranspose2d,
    "linear": nn.Linear,
}  # fmt: skip


def call_layers(rewriting: Rewriting) -> None:
    """Turn each functional weight layer into a call of a module that holds the same parameters."""
    made: dict[tuple[object, ...], str] = {}
    for node in list(rewriting.graph.nodes):
        kind = function_of(node)
        if kind not in _SIGNATURES or node.op != "call_function":
            continue
        given = _DEFAULTS | dict(zip(_SIGNATURES[kind], node.args, strict=False)) | dict(node.kwargs)
        x, tensors = given["input"], [given.get(key) for key in ("weight", "bias", "running_mean", "running_var")]
        if not isinstance(x, fx.Node) or not x.meta["data"] or any(isinstance(t, fx.Node) and t.meta["data"] for t in tensors):
            continue
        owner = _owner(given.get("weight"))
        if owner is not None and rewriting.is_kept(owner):
            continue
        if kind == "batch_norm":
            _call_norm(rewriting, node, given, made)
        elif isinstance(given["weight"], fx.Node):
            _call_layer(rewriting, node, kind, given, made)


def _call_layer(
    rewriting: Rewriting, node: fx.Node, kind: str, given: Mapping[str, Any], made: dict[tuple[object, ...], str]
) -> None:
    settings = {key: given[key] for key in _SIGNATURES[kind][3:]}
    if any(isinstance(value, fx.Node) for value in settings.values()):
        return
    key = (kind, given["weight"], given["bias"], repr(settings))
    if key not in made:
        layer = _build(kind, rewriting, given, settings)
        if layer is None:
            return
        made[key] = _place(rewriting, node, layer, given, "linear" if kind == "linear" else "conv")
        what = "a forward of its own" if _owner(given["weight"]) else "a parameter outside a layer"
        folded = (
            "" if given["weight"].op == "get_attr" else "; its weight was computed on every call, and is a plain parameter now"
        )
        rewriting.changed(node, f"{kind}() with {what} became {rewriting.describe(made[key])}{folded}")
    new = rewriting.call(made[key], given["input"], at=node)
    new.meta["shape"] = node.meta["shape"]
    rewriting.replace(node, new)


def _build(kind: str, rewriting: Rewriting, given: Mapping[str, Any], settings: Mapping[str, Any]) -> nn.Module | None:
    """The layer of a call, with the parameters of the call themselves."""
    weight = _parameter(rewriting, given["weight"])
    bias = None if given["bias"] is None else _parameter(rewriting, given["bias"])
    if kind == "linear":
        layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        axes = weight.dim() - 2
        numbers = {k: v if isinstance(v, (str, int)) else tuple(v) for k, v in settings.items()}
        numbers = {k: v[0] if isinstance(v, tuple) and len(v) == 1 < axes else v for k, v in numbers.items()}
        groups = int(settings["groups"])
        transposed = "transpose" in kind
        inputs, outputs = (
            (weight.shape[0], weight.shape[1] * groups) if transposed else (weight.shape[1] * groups, weight.shape[0])
        )
        layer = _LAYERS[kind](inputs, outputs, tuple(weight.shape[2:]), bias=bias is not None, device="meta", **numbers)
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    return layer


def _call_norm(rewriting: Rewriting, node: fx.Node, given: Mapping[str, Any], made: dict[tuple[object, ...], str]) -> None:
    names = ("running_mean", "running_var", *(n for n in ("weight", "bias") if given.get(n) is not None))
    if given.get("training") or any(not isinstance(given.get(n), fx.Node) or given[n].op != "get_attr" for n in names):
        return
    owner = {str(given[n].target).rpartition(".")[0] for n in names}
    if len(owner) != 1 or any(str(given[n].target).rpartition(".")[2] != n for n in names) or "" in owner:
        return
    path = owner.pop()
    old = rewriting.net.get_submodule(path)
    held = {key for key, tensor in (*old._parameters.items(), *old._buffers.items()) if tensor is not None}
    if len(names) == 3 or held - {*names, "num_batches_tracked"}:
        return
    if (path,) not in made:
        mean = rewriting.tensor(given["running_mean"])
        cls = nn.BatchNorm1d if len(given["input"].meta["shape"]) < 4 else nn.BatchNorm2d
        affine = "weight" in names
        norm = cls(len(mean), given["eps"], given["momentum"], affine, device=mean.device, dtype=mean.dtype)
        norm._parameters.update({k: old._parameters[k] for k in names[2:]})
        norm._buffers.update(old._buffers)
        norm._modules.update(old._modules)  # such as the activation of a norm that calls one: it keeps its name
        rewriting.put(path, norm)
        rewriting.changed(node, f"batch_norm() with a forward of its own became {rewriting.describe(path)}")
        made[(path,)] = path
    rewriting.replace(node, rewriting.call(path, given["input"], at=node))


def _place(rewriting: Rewriting, node: fx.Node, layer: nn.Module, given: Mapping[str, Any], stem: str) -> str:
    """Register a layer: at the path of the module that holds nothing but its parameters, or under a new name."""
    path = _owner(given["weight"])
    owners = {_owner(given[key]) for key in ("weight", "bias") if given[key] is not None}
    if path and owners == {path}:
        old = rewriting.net.get_submodule(path)
        held = {key for key, p in old._parameters.items() if p is not None} | {*old._modules}
        whole = given["weight"].op == "get_attr" or _readers(rewriting, path) == {node}  # another call may take another part
        if held <= {"weight", *(["bias"] if layer.bias is not None else [])} and whole and _is_first(rewriting, path):
            rewriting.put(path, layer)
            return path
        if not isinstance(old, (nn.ParameterList, nn.ParameterDict)):
            return rewriting.add_beside(path, layer)
    return rewriting.add(node.meta["scope"], stem, layer)


def _readers(rewriting: Rewriting, path: str) -> set[fx.Node]:
    """The calls on data that use the parameters of a module, or what is computed from them."""
    reading = [n for n in rewriting.graph.nodes if n.op == "get_attr" and str(n.target).rpartition(".")[0] == path]
    found: set[fx.Node] = set()
    while reading:
        for user in reading.pop().users:
            if user.meta.get("data"):
                found.add(user)
            else:
                reading.append(user)
    return found


def _is_first(rewriting: Rewriting, path: str) -> bool:
    """Whether no call of the graph is of the module at a path."""
    return not any(n.op == "call_module" and n.target == path for n in rewriting.graph.nodes)


def _owner(node: Any) -> str | None:
    """The path of the module that holds the parameter which a node reads, or computes its value from."""
    sources = [node] if isinstance(node, fx.Node) else []
    while sources:
        source = sources.pop(0)
        if source.op == "get_attr" and not str(source.target).startswith("_constant_"):
            return str(source.target).rpartition(".")[0]
        sources += source.all_input_nodes
    return None


def _parameter(rewriting: Rewriting, node: fx.Node) -> nn.Parameter:
    """The parameter that a node reads, or a new one with the value that it computes, in the place of the first it reads."""
    value = value_of(rewriting, node)
    if isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(value.detach().clone(), requires_grad=value.is_floating_point())


def value_of(rewriting: Rewriting, node: fx.Node) -> Tensor:
    """The value of a node that does not depend on the image."""
    value = rewriting.evaluate(node)
    assert isinstance(value, Tensor)
    return value
