"""Hooks on modules that leave no trace."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

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
