"""Full float32 where a result is measured or converted, whatever the process allows for speed.

By default PyTorch lets cuDNN round the inputs of float32 convolutions to TF32, which keeps 10 bits of 23. That suits training.
It also moves 4 to 18 of 10,000 CIFAR-10 images to another class (docs/log.md), and counts of spikes that are meant to be exact.
So networks are trained in what is fast, and evaluated, calibrated, converted and compared in full float32.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

_lock = threading.Lock()
_inside = 0  # contexts that are open, of all threads: the settings belong to the process
_restore: list[Callable[[], None]] = []  # what the last one to close calls, in this order


@contextmanager
def full_float32() -> Iterator[None]:
    """While open, float32 products and convolutions use all bits: no TF32 on CUDA, no bfloat16 in oneDNN; also a decorator.

    The settings are the process's own, so other threads compute with full bits meanwhile too. Contexts may be nested and
    overlap in threads: the first to open notes the settings and the last to close restores them. Autocast is left as it is.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _restore[:] = _switch_off()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                with _quiet():
                    for undo in _restore:
                        undo()


def convolutions_in_tf32() -> bool:
    """Whether cuDNN may round float32 convolutions now."""
    newer = _newer_settings()
    return bool(newer[0].fp32_precision == "tf32" if newer else torch.backends.cudnn.allow_tf32)


def _switch_off() -> list[Callable[[], None]]:
    """Ask for full float32; returns what restores the settings of before.

    Since 2.9 torch has two sets of names for the same settings, and reading the older ones fails where the two disagree. So
    both are set, the older ones first, unless they disagree already: then only the newer ones are in use.
    """
    undo: list[Callable[[], None]] = []
    with _quiet():
        newer = [(setting, setting.fp32_precision) for setting in _newer_settings()]
        for read, write, full in _OLDER_SETTINGS:
            try:
                undo.append(partial(write, read()))
            except RuntimeError:
                continue
            write(full)
        for setting, before in newer:
            setting.fp32_precision = "ieee"
            undo.append(partial(setattr, setting, "fp32_precision", before))
    return undo


def _newer_settings() -> list[Any]:
    """Objects with a setting `fp32_precision`; none before torch 2.9."""
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):
        return []
    return [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul]


def _set_cudnn(allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = allowed


# How to read it, how to write it, and its value for full float32. The matmul precision stands for cuda.matmul.allow_tf32 too.
_OLDER_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], None], Any], ...] = (
    (lambda: torch.backends.cudnn.allow_tf32, _set_cudnn, False),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
)


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch 2.9 warns of its older settings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TF32", category=UserWarning)
        yield
