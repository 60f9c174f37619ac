"""Full float32 for measurements and conversions, also if the process allows TF32.

By default PyTorch lets cuDNN round the inputs of float32 convolutions to TF32, which keeps 10 bits of 23. That is fine for
training, but it changes the class of 4 to 18 of 10,000 CIFAR-10 images (docs/log.md), and spike counts that should be exact. So
training may use TF32, while evaluation, calibration, conversion and comparison use full float32.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

_lock = threading.Lock()
_inside = 0  # open contexts in all threads, because the settings are global
_restore: list[Callable[[], None]] = []  # called in this order when the last context is left


@contextmanager
def full_float32() -> Iterator[None]:
    """Context manager or decorator: float32 products and convolutions use all bits, without TF32 on CUDA or bfloat16 in oneDNN.

    The settings are global, so they also apply to other threads meanwhile. Contexts may be nested and may overlap in threads:
        the first one stores the settings and the last one restores them. Autocast is not affected.
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


def product_precision() -> str:
    """How float32 matrix products may be rounded now: "full", or each setting that allows less."""
    older = torch.get_float32_matmul_precision
    with _quiet():
        try:
            lower = {"matmul": older()} if older() != "highest" else {}
        except RuntimeError:  # set by the newer names alone
            lower = {}
        names = ("cudnn.conv", "cudnn.rnn", "cuda.matmul", "mkldnn.conv", "mkldnn.matmul")
        newer = {name: item.fp32_precision for name, item in zip(names, _newer_settings(), strict=False)}
    lower |= {name: value for name, value in newer.items() if value in ("tf32", "bf16") and not name.startswith("cudnn")}
    return " ".join(f"{name}={value}" for name, value in lower.items()) or "full"


def _switch_off() -> list[Callable[[], None]]:
    """Set full float32, and return a function that restores the previous settings.

    Since 2.9 torch has two sets of names for the same settings, and reading the older ones fails where the two disagree. So
        both are set, the older ones first, unless they already disagree: then only the newer ones are in use.
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
