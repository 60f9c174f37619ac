"""Backends: the C++ kernel on a CPU, torch operations on any device, and registered ones. All give the same bits."""

from nbsnn.errors import ConfigError, unknown
from nbsnn.integer.backends import library, native, torch
from nbsnn.integer.backends.base import BACKENDS, Backend, Engine, Request, register

__all__ = ["BACKENDS", "Backend", "Engine", "Request", "backend_facts", "choose", "register"]

_AUTO = (native.NATIVE, torch.TORCH)  # the fastest first


def choose(name: str, request: Request) -> Backend:
    """The backend of this name; for "auto", native if it supports the request, otherwise torch.

    Raises:
        ConfigError: unknown, or it does not support the request; says why.
    """
    if name == "auto":
        return next(backend for backend in _AUTO if backend.obstacle(request) is None)
    if name not in BACKENDS:
        raise ConfigError(unknown("backend", str(name), ("auto", *BACKENDS)))
    backend = BACKENDS[name]
    if (obstacle := backend.obstacle(request)) is not None:
        join = ", or " if "; " in obstacle else "; "
        raise ConfigError(f"backend={name!r} cannot run: {obstacle}{join}use backend={choose('auto', request).name!r}")
    return backend


def backend_facts() -> dict[str, str]:
    """Which backend runs integer networks on this CPU, and why."""
    obstacle = library.why_not()
    if obstacle is not None:
        return {"backend": "torch", "native": obstacle}
    return {"backend": "native", "native": f"built; instruction sets here: {', '.join(library.targets())}"}
