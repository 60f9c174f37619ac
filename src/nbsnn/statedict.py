"""Check that a state dict from a file fits a network, key by key, before anything is copied."""

import difflib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from nbsnn.errors import CheckpointError

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_MOST_NAMED = 8  # problems in one message


def check_state(net: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Raise an error if tensors do not fit a network, which may be on the meta device so that nothing is allocated.

    Floating-point tensors may have another type than the network's if all of them have the same type.

    Raises:
        CheckpointError: names every key that is missing, unexpected, or of another shape or type, and invalid statistics.
    """
    problems = list(_problems(net, state))
    if problems:
        more = [f"and {len(problems) - _MOST_NAMED} more"] if len(problems) > _MOST_NAMED else []
        raise CheckpointError(f"{source} does not fit the network: {'; '.join(problems[:_MOST_NAMED] + more)}")


def floating_type(state: Mapping[str, Tensor]) -> torch.dtype | None:
    """The type of the floating-point tensors, if all have the same."""
    types = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    return types.pop() if len(types) == 1 else None


def same_kind(given: Tensor, wanted: Tensor) -> bool:
    """Whether a tensor can be copied into another one: both floating-point, or both of the same type."""
    return given.dtype == wanted.dtype or (given.dtype in FLOATS and wanted.dtype in FLOATS)


def _problems(net: nn.Module, state: Mapping[str, Tensor]) -> Iterator[str]:
    own = net.state_dict()
    lost, extra = [key for key in own if key not in state], [key for key in state if key not in own]
    for index, key in enumerate(lost):
        fitting = [name for name in extra if state[name].shape == own[key].shape] if index < _MOST_NAMED else []
        yield f"missing {key}{_alike(key, fitting)}"
    yield from (f"not expected {key}" for key in extra)
    common = floating_type(state)
    for key, wanted in own.items():
        if key not in state:
            continue
        given = state[key]
        if given.shape != wanted.shape:
            yield f"{key} has shape {list(given.shape)} instead of {list(wanted.shape)}"
        elif given.dtype != wanted.dtype and not (wanted.is_floating_point() and given.dtype == common and common in FLOATS):
            yield f"{key} is {_name(given)} instead of {_name(wanted)}{_mixture(state, common)}"
        elif key.endswith(("running_var", "num_batches_tracked")) and bool((given < 0).any()):
            yield f"{key} is negative"


def _alike(key: str, extra: Sequence[str]) -> str:
    """The unexpected name, of a tensor of that shape, that a missing one is close to."""
    end = key.rpartition(".")[2]
    close = difflib.get_close_matches(key, [name for name in extra if name.rpartition(".")[2] == end], n=1, cutoff=0.6)
    return f" (is it {close[0]}?)" if close else ""


def _mixture(state: Mapping[str, Tensor], common: torch.dtype | None) -> str:
    return " (floating tensors are of several types)" if common is None and state else ""


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
