"""Load the package's C++ libraries, which are optional, and find the threads that they share with torch."""

import ctypes
import os
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch


def load_extension(folder: Path, version: str, interface: int) -> ctypes.CDLL | str:
    """The library `_native` of a folder, or the reason why there is none, for messages.

    Args:
        folder: where it is built.
        version: name of the function that returns the version of its C interface.
        interface: the version that the caller knows.
    """
    files = [path for suffix in EXTENSION_SUFFIXES for path in folder.glob(f"_native{suffix}")]
    if not files:
        return "the extension was not built; install nbsnn where a C++17 compiler is found"
    try:
        library = ctypes.CDLL(str(files[0]))
    except OSError as error:
        return f"the extension does not load: {error}"
    if not hasattr(library, version) or getattr(library, version)() != interface:
        return "the extension is of another version of nbsnn; install nbsnn again (in a checkout: make)"
    return library


def pool_of_torch() -> int | None:
    """The address of GOMP_parallel in the OpenMP library of torch, whose threads are awake after an operation of torch.

    None if torch is linked with another library, and in a forked process, where that library has lost its threads.
    """
    address, process = _found_pool()
    return address if process == os.getpid() else None


@cache
def _found_pool() -> tuple[int | None, int]:
    try:
        found = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError):
        return None, os.getpid()
    return ctypes.cast(found, ctypes.c_void_p).value, os.getpid()
