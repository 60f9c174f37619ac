"""Hooks on modules that are removed on exit, and their arguments."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[list[RemovableHandle]]:
    """Remove hooks when the context is left: `with hooked(m.register_forward_hook(f) for m in modules): ...`.

    Yields:
        The handles; a hook may be removed earlier.
    """
    registered = list(handles)
    try:
        yield registered
    finally:
        for handle in registered:
            handle.remove()


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The tensor that a module with one input was called on, by position or by keyword; for hooks `with_kwargs`."""
    x: Tensor = next(iter((*args, *kwargs.values())))
    return x
