"""Quantizers and sums as single passes in C++, for float32 tensors on a CPU.

In torch operations a quantized activation takes four passes over memory forward and four backward; here it takes one each. Sums
are in double precision. The extension is optional, like the native backend: each function returns None where it does not apply
(no extension, another device or type, `torch.compile`, tracing), and its caller then computes the same in torch.

It is a plain C library, loaded with ctypes, so a call releases the GIL. Threads are those of torch's own OpenMP library.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.extension import load_extension, pool_of_torch

_INTERFACE = 2  # version of the C interface, whose functions are:
_int, _int64, _pointer, _double = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
_SIGNATURES: dict[str, list[Any]] = {
    "pool": [_pointer],
    "use": [_int],
    "dot": [_pointer, _pointer, _int64, _int, _pointer],
    "moments": [_pointer, _int64, _int, _pointer],
    "activation": [_pointer, _int64, _pointer, _int, _double, _int, _int, _pointer, _pointer],
    "activation_gradient": [_pointer, _pointer, _int64, _pointer, _int, _double, _int, _pointer, _pointer],
    "counts": [_pointer, _int64, _int, _int, _pointer, _pointer],
    "weight": [_pointer, _int64, _pointer, _pointer, _int, _int, _int, _pointer, _pointer, _pointer],
    "weight_gradient": [
        _pointer, _pointer, _pointer, _int64, _pointer, _pointer, _pointer, _int, _int, _pointer, _pointer
    ],
}  # fmt: skip
_FLOAT, _STRIDED, _CLASSES = torch.float32, torch.strided, (Tensor, nn.Parameter)
_SMALL = 2**16  # numbers that one thread passes over sooner than a second one starts


@cache
def _loaded() -> ctypes.CDLL | str:
    """The extension, or the reason why there is none."""
    if os.environ.get("NBSNN_NATIVE") == "0":
        return "switched off by NBSNN_NATIVE=0"
    library = load_extension(Path(__file__).parent, "nbsnn_fused_version", _INTERFACE)
    if isinstance(library, str):
        return library
    for name, arguments in _SIGNATURES.items():
        getattr(library, f"nbsnn_fused_{name}").argtypes = arguments
    library.nbsnn_fused_pool(pool_of_torch())
    return library


def obstacle() -> str | None:
    """None if the extension can run, otherwise the reason, for messages."""
    found = _loaded()
    return found if isinstance(found, str) else None


def _library() -> ctypes.CDLL | None:
    found = _loaded()
    return None if isinstance(found, str) else found


def _usable(*tensors: Tensor) -> ctypes.CDLL | None:
    """The extension, if it may read these tensors of one shape, and all are in one storage order."""
    if torch.compiler.is_compiling() or _watched():
        return None
    first, in_order = tensors[0], True
    for t in tensors:
        if not _plain(t) or t.shape != first.shape:
            return None
        in_order = in_order and t.is_contiguous()
    if not in_order and not all(map(_is_channels_last, tensors)):
        return None
    return _library() if first.numel() else None


def _watched() -> bool:
    """Whether something records the operations of torch, and so must see them."""
    modes = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    return bool(modes or torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def _plain(t: Tensor) -> bool:
    """Whether the tensor's numbers lie in memory as float32: no subclass, no lazy negation."""
    return t.dtype is _FLOAT and t.is_cpu and type(t) in _CLASSES and t.layout is _STRIDED and not t.is_neg()


def _is_channels_last(t: Tensor) -> bool:
    return t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)


def _alike(grad: Tensor, other: Tensor) -> Tensor:
    """The gradient in the storage order of the tensor that it belongs to."""
    if torch.compiler.is_compiling() or grad.stride() == other.stride() or not _plain(grad):
        return grad
    return torch.empty_like(other).copy_(grad)


def _threads(numbers: int) -> int:
    return torch.get_num_threads() if numbers > _SMALL else 1


def sum_of_products(a: Tensor, b: Tensor) -> Tensor | None:
    """Σ a·b of two tensors of one shape, scalar float64."""
    library = _usable(a, b)
    if library is None:
        return None
    result = torch.empty((), dtype=torch.float64)
    n = a.numel()
    failed = library.nbsnn_fused_dot(a.data_ptr(), b.data_ptr(), n, _threads(n), result.data_ptr())
    return None if failed else result


def mean_and_squares(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """The mean of a tensor and the sum of its squared deviations from it, scalars, float64."""
    library = _usable(x)
    if library is None:
        return None
    result, n = torch.empty(2, dtype=torch.float64), x.numel()
    failed = library.nbsnn_fused_moments(x.data_ptr(), n, _threads(n), result.data_ptr())
    return None if failed else (result[0], result[1])


def activation(
    x: Tensor, threshold: Tensor, *, levels: int, shift: float, keep: bool = True
) -> tuple[Tensor | None, Tensor] | None:
    """`scaled` (None unless it is to be kept) and y of `_QuantizeActivation`, the same bits as torch's."""
    library = _usable(x)
    if library is None or not _plain(threshold) or (rounding := _rounding_of_torch()) is None:
        return None
    scaled, y, n = torch.empty_like(x) if keep else None, torch.empty_like(x), x.numel()
    failed = library.nbsnn_fused_activation(
        x.data_ptr(), n, threshold.data_ptr(), levels, shift, rounding, _threads(n),
        None if scaled is None else scaled.data_ptr(), y.data_ptr(),
    )  # fmt: skip
    return None if failed else (scaled, y)


def counts(x: Tensor, most: int = 255) -> tuple[Tensor, float] | None:
    """Numbers that are 0 to `most` times one of them, as these integers (uint8, laid out like x) and that number."""
    library = _usable(x)
    if library is None:
        return None
    result, step, n = torch.empty_like(x, dtype=torch.uint8), ctypes.c_float(), x.numel()
    if library.nbsnn_fused_counts(x.data_ptr(), n, most, _threads(n), result.data_ptr(), ctypes.byref(step)):
        return None
    return result, step.value


def activation_gradient(
    grad: Tensor, scaled: Tensor, threshold: Tensor, *, levels: int, shift: float
) -> tuple[Tensor, Tensor] | None:
    """The gradients of x and of the threshold."""
    grad = _alike(grad, scaled)
    library = _usable(scaled, grad)
    if library is None or not _plain(threshold):
        return None
    inside, of_threshold, n = torch.empty_like(scaled), torch.empty_like(threshold), scaled.numel()
    failed = library.nbsnn_fused_activation_gradient(
        grad.data_ptr(), scaled.data_ptr(), n, threshold.data_ptr(), levels, shift, _threads(n),
        inside.data_ptr(), of_threshold.data_ptr(),
    )  # fmt: skip
    return None if failed else (inside, of_threshold)


def weight(
    weight: Tensor, scale: Tensor, table: Callable[[], Tensor], *, own_scale: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Values, mean and deviation of `QuantizedWeight`; `table` returns the levels of the cells."""
    library = _usable(weight)
    if library is None or not _plain(scale):
        return None
    levels, values, n = table(), torch.empty_like(weight), weight.numel()
    mean, deviation = weight.new_empty(()), weight.new_empty(())
    failed = library.nbsnn_fused_weight(
        weight.data_ptr(), n, scale.data_ptr(), levels.data_ptr(), len(levels) - 1, own_scale, _threads(n),
        values.data_ptr(), mean.data_ptr(), deviation.data_ptr(),
    )  # fmt: skip
    return None if failed else (values, mean, deviation)


def weight_gradient(
    grad: Tensor, weight: Tensor, scale: Tensor, quantized: tuple[Tensor, Tensor, Tensor], *, own_scale: bool
) -> tuple[Tensor, Tensor] | None:
    """The gradients of a weight and of its scale."""
    values, mean, deviation = quantized
    grad = _alike(grad, weight)
    library = _usable(weight, grad, values)
    if library is None or not (_plain(scale) and _plain(mean) and _plain(deviation)):
        return None
    result, of_scale, n = torch.empty_like(weight), torch.empty_like(scale), weight.numel()
    failed = library.nbsnn_fused_weight_gradient(
        grad.data_ptr(), weight.data_ptr(), values.data_ptr(), n, scale.data_ptr(), mean.data_ptr(), deviation.data_ptr(),
        own_scale, _threads(n), result.data_ptr(), of_scale.data_ptr(),
    )  # fmt: skip
    return None if failed else (result, of_scale)


@cache
def _rounding_of_torch() -> int | None:
    """1 if torch.add(a, x, alpha=f) rounds once (fused multiply-add), 0 if twice, None if it is neither everywhere.

    That depends on the processor, on ATEN_CPU_CAPABILITY and on how torch was built, so it is tried.
    """
    library = _library()
    assert library is not None
    with torch.inference_mode(False), torch.no_grad():
        x, threshold = torch.linspace(-1, 3, 4099), torch.tensor(1.7)
        alike = []
        for rounding in (0, 1):
            scaled, y = torch.empty_like(x), torch.empty_like(x)
            library.nbsnn_fused_activation(
                x.data_ptr(), len(x), threshold.data_ptr(), 15, 0.5, rounding, 1, scaled.data_ptr(), y.data_ptr()
            )
            alike.append(all(  # short tensors too: their last numbers take another path in torch
                torch.add(torch.tensor(0.5), part, alpha=(15 / threshold).item()).clamp_(0.5, 15.5).equal(known)
                for part, known in zip((x, *torch.split(x, 5)), (scaled, *torch.split(scaled, 5)), strict=True)
            ))  # fmt: skip
    return alike.index(True) if any(alike) else None
