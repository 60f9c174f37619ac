"""What a network returns: a tensor, or tensors in tuples, lists and dicts."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from nbsnn.errors import ConfigError
from nbsnn.tracing import tensors_in


def map_outputs(function: Callable[..., Any], *outputs: Any) -> Any:
    """What a network returns, with a function applied to each tensor; of several results, to the tensors in one place.

    A named tuple stays one, and any other mapping becomes a dict. What is no tensor comes from the first result.
    """
    first = outputs[0]
    if isinstance(first, Tensor):
        return function(*outputs)
    if isinstance(first, Mapping):
        return {key: map_outputs(function, *(output[key] for output in outputs)) for key in first}
    if isinstance(first, (tuple, list)):
        items = [map_outputs(function, *parts) for parts in zip(*outputs, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return first


def odd_output(output: Any) -> str | None:
    """The type of something in a network's result that is neither a tensor nor None; None if there is no such thing."""
    if output is None or isinstance(output, Tensor):
        return None
    if isinstance(output, Mapping):
        keys = [f"dict with keys such as {key!r}" for key in output if not isinstance(key, (str, int))]
        return next(filter(None, [*keys, *map(odd_output, output.values())]), None)
    if isinstance(output, (tuple, list)):
        return next(filter(None, map(odd_output, output)), None)
    return type(output).__name__


def pick_output(output: Any, which: str | int | None = None) -> Tensor:
    """One tensor of a network's result: the first one, or the one with a key or an index, or the first in that.

    Raises:
        ConfigError: there is none.
    """
    parts = output if isinstance(output, Mapping) else dict(enumerate(output)) if isinstance(output, (tuple, list)) else {}
    tensor = next(iter(tensors_in(output if which is None else parts.get(which))), None)
    if tensor is None:
        known = ", ".join(map(repr, parts))
        remedy = f"choose one of {known}" if known else "leave it out, as the network returns one tensor"
        raise ConfigError(f"output={which!r}: the network returns no such tensor; {remedy}")
    return tensor
