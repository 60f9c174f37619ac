"""Copy and replace modules, and observe their outputs."""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from nbsnn.hooks import hooked


@torch.no_grad()
def fold_computed_weights_(net: nn.Module) -> list[str]:
    """Replace parameters that are computed in each call (weight norm, spectral norm, pruning, parametrizations) by plain ones.

    Returns:
        Names of these parameters, which hold the values computed in evaluation mode.
    """
    folded = []
    with evaluation_mode(net):  # in training mode spectral norm would do another power iteration
        for name, module in list(net.named_modules()):
            prefix = f"{name}." if name else ""
            folded += [prefix + tensor for tensor in _fold_parametrizations_(module)]
            for hook in list(module._forward_pre_hooks.values()):
                if isinstance(hook, WeightNorm):
                    folded.append(prefix + hook.name)
                    remove_weight_norm(module, hook.name)
                elif isinstance(hook, SpectralNorm):
                    folded.append(prefix + hook.name)
                    remove_spectral_norm(module, hook.name)
                elif isinstance(hook, prune.BasePruningMethod):
                    folded.append(prefix + str(hook._tensor_name))
                    prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
    return folded


def _fold_parametrizations_(module: nn.Module) -> list[str]:
    """Not `remove_parametrizations`: that deletes a property of the class, which copies of a module share."""
    if not parametrize.is_parametrized(module):
        return []
    lists = module.parametrizations
    assert isinstance(lists, nn.ModuleDict)
    values = {tensor: (getattr(module, tensor), any(p.requires_grad for p in lists[tensor].parameters())) for tensor in lists}
    buffers = {tensor for tensor in lists if not list(lists[tensor].parameters())}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for tensor, (value, trained) in values.items():
        if tensor in buffers:
            module.register_buffer(tensor, value.clone())
        else:
            module.register_parameter(tensor, nn.Parameter(value.clone(), requires_grad=trained))
    return list(values)


_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip


def replace_modules_(root: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replace each module m in the tree by `replacements[m]`, under every name it has, and return the root.

    Hooks on m are moved too: hooks that change the output are part of the network.
    """
    for old, new in replacements.items():
        for hooks in _HOOKS:
            setattr(new, hooks, getattr(old, hooks))
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):  # named_children would skip a second name
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])
    return replacements.get(root, root)


def shared_copy(network: nn.Module) -> nn.Module:
    """A copy of the module tree that shares parameters and buffers, and has its own modes, hooks and settings."""
    same: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    copied: nn.Module = copy.deepcopy(network, same)
    return copied


class _Mode:
    """The mode that a module is restored to when a context is left."""

    def __init__(self, training: bool) -> None:
        self.training = training


_lock = threading.Lock()
_contexts: WeakKeyDictionary[nn.Module, list[_Mode]] = WeakKeyDictionary()  # open contexts of each module, the latest last


@contextmanager
def evaluation_mode(*networks: nn.Module) -> Iterator[None]:
    """Context manager for evaluation mode; the mode of each module is restored.

    Contexts of several threads on one network may overlap: the mode is restored when the last one is left.
    """
    opened: dict[nn.Module, _Mode] = {}
    with _lock:
        for module in dict.fromkeys(module for network in networks for module in network.modules()):
            opened[module] = _Mode(module.training)
            _contexts.setdefault(module, []).append(opened[module])
        for network in networks:
            network.eval()
    try:
        yield
    finally:
        with _lock:
            for module, mode in opened.items():
                contexts = _contexts[module]
                place = contexts.index(mode)
                del contexts[place]
                if place == len(contexts):
                    module.training = mode.training
                else:
                    contexts[place].training = mode.training  # a later context is still open: it restores this mode


@contextmanager
def tap(
    modules: Mapping[str, nn.Module] | Iterable[tuple[str, nn.Module]],
    reduce: Callable[[Tensor], Any] = Tensor.detach,
) -> Iterator[dict[str, list[Any]]]:
    """Context manager that collects the outputs of some modules in calls of this thread; hooks are removed on exit.

    Args:
        modules: name → module, such as `{"act": net.stem.act}` or `net.named_modules()`.
        reduce: applied to each output immediately, so that large tensors need not be stored.
    Yields:
        name → list of reduced outputs, one per call of the module.
    """
    seen: dict[str, list[Any]] = {}
    handles, here = [], threading.get_ident()
    for name, module in dict(modules).items():
        outputs = seen.setdefault(name, [])

        def keep(_m: nn.Module, _args: Any, output: Tensor, outputs: list[Any] = outputs) -> None:
            if threading.get_ident() == here:
                outputs.append(reduce(output))

        handles.append(module.register_forward_hook(keep, prepend=True))  # the module's output before the user's hooks
    with hooked(handles):
        yield seen
