"""Networks inside wrappers of torch: DataParallel, DistributedDataParallel, FSDP, torch.compile, EMA and checkpointing.

A wrapper adds a prefix to the names of layers and tensors. The functions here unwrap networks, copy them without wrappers, and
remove the prefixes from state dicts, so a wrapped network is saved like the bare one.
"""

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nbsnn.errors import NbsnnError

T = TypeVar("T")

# torch's classes that hold one network and call it, by name so that they need not be imported: class → its only child.
_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
}
_UNAMBIGUOUS = frozenset(_WRAPPERS.values()) - {"module"}


def unwrap(module: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel, FSDP, torch.compile and the like, at any depth; else `module`.
    Wrappers further down the tree remain; see `copied`.
    """
    while (inner := _wrapped(module)) is not None:
        module = inner
    return module


def as_network(model: object, error: type[NbsnnError]) -> nn.Module:
    """The bare network that `model` is or wraps.

    Raises:
        error: the layers of the network cannot be replaced: it has another class, is TorchScript, or has sharded parameters.
    """
    if not isinstance(model, nn.Module):
        raise error(f"the network is of class {type(model).__name__}; give an nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise error("the network is TorchScript, whose layers are not modules; give the network that it was made from")
    for name, part in model.named_modules():
        if _is_sharded(part):
            raise error(
                f"the parameters of {name or 'the network'} are sharded; load the full state dict (get_model_state_dict of "
                "torch.distributed.checkpoint.state_dict, with full_state_dict=True) into a network without FSDP"
            )
    return unwrap(model)


def is_sharded(model: nn.Module) -> bool:
    """Whether several processes hold parts of a network's parameters."""
    return any(_is_sharded(part) for part in model.modules())


def _is_sharded(part: nn.Module) -> bool:
    strategy = getattr(part, "sharding_strategy", None) if _wrapper_of(part) == "FullyShardedDataParallel" else None
    if strategy is not None and strategy.name != "NO_SHARD":
        return True
    return any(type(p).__name__ == "DTensor" or key == "_flat_param" for key, p in part._parameters.items())


def copied(module: nn.Module) -> nn.Module:
    """A deep copy without wrappers, at the root or anywhere in the tree, so that its names are those of the bare network.

    Tensors with an autograd graph, such as the weight that a hook of `weight_norm` computed last, are copied without it.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        memo |= {id(t): t.detach().clone() for t in _held(vars(part)) if t.grad_fn is not None}
    for part in reversed(list(module.modules())):  # from the inside out: the content of a wrapper is copied before the wrapper
        if (inner := _wrapped(part)) is not None:
            memo[id(part)] = copy.deepcopy(inner, memo)
    return copy.deepcopy(module, memo)


def _held(tree: Any) -> Iterable[Tensor]:
    """Tensors in attributes, and in dicts, lists and tuples among them, such as those that hooks fill."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (dict, list, tuple)):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _held(item)


def bare(module: nn.Module) -> nn.Module:
    """The network without wrappers: the network itself if it has none further down the tree, else a copy."""
    inner = unwrap(module)
    return copied(inner) if any(_wrapped(part) is not None for part in inner.modules()) else inner


def bare_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the network inside all wrappers, under its own names; full tensors also if they are sharded.

    Every process of a group must call it on a sharded network.
    """
    by_fsdp = any(_wrapper_of(part) == "FullyShardedDataParallel" for part in model.modules())
    source = model if by_fsdp else unwrap(model)  # FSDP gathers its parameters itself
    names = bare_names(source)
    state = {}
    for key, value in source.state_dict().items():
        path, _, leaf = key.rpartition(".")
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        state[f"{names.get(path, path)}.{leaf}".lstrip(".")] = whole
    return state


def bare_names(model: nn.Module) -> dict[str, str]:
    """The path of each module in a tree → its path without wrappers."""
    names, inside = {"": ""}, {"": _inner_name(model)}
    for path, part in model.named_modules(remove_duplicate=False):
        if path:
            parent, _, leaf = path.rpartition(".")
            names[path] = names[parent] if leaf == inside[parent] else f"{names[parent]}.{leaf}".lstrip(".")
            inside[path] = _inner_name(part)
    # FSDP does not put its own name into the keys of its state dict.
    return names | {path.replace("_fsdp_wrapped_module.", ""): name for path, name in names.items()}


def without_wrappers(state: Mapping[str, T], known: Collection[str] | None = None) -> dict[str, T]:
    """A dictionary keyed by names of layers or tensors, without the prefixes of wrappers.

    Args:
        state: such as a state dict; the counter of `AveragedModel` is dropped.
        known: names of the bare network: they are not changed, and no name is changed to one that is not among them.
    """
    result: dict[str, T] = {}
    for key, value in state.items():
        if key == "n_averaged" and key not in (known or ()) and len(state) > 1:
            continue
        bare = key if known is not None and key in known else _bare_key(key)
        taken = bare in result or (bare != key and bare in state)  # two tensors for one name: keep both
        result[key if taken or (known is not None and bare not in known) else bare] = value
    return result


def _bare_key(key: str) -> str:
    """ "module." is removed at the start only: a network may have a child of that name."""
    parts = [part for part in key.split(".") if part not in _UNAMBIGUOUS]
    start = next((index for index, part in enumerate(parts) if part != "module"), 0)
    return ".".join(parts[start:])


def _wrapped(module: nn.Module) -> nn.Module | None:
    name = _inner_name(module)
    inner = getattr(module, name, None) if name else None
    return inner if isinstance(inner, nn.Module) else None


def _inner_name(module: nn.Module) -> str | None:
    """The attribute of a wrapper that holds its network."""
    wrapper = _wrapper_of(module)
    return _WRAPPERS[wrapper] if wrapper else None


def _wrapper_of(module: nn.Module) -> str | None:
    """The class of a torch wrapper that a module is an instance of."""
    names = (cls.__name__ for cls in type(module).__mro__ if cls.__module__.startswith("torch."))
    return next((name for name in names if name in _WRAPPERS), None)
