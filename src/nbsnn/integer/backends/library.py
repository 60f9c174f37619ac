"""The C++ kernel in `integer/native/`, loaded with ctypes: its functions, instruction sets, and what they can do.

The extension is optional. It is a plain C library, so a call releases the GIL and needs only the addresses of torch tensors.
"""

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from nbsnn.errors import ConfigError, unknown
from nbsnn.extension import load_extension

Target = Literal["baseline", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512vbmi", "amx", "dotprod"]
_INTERFACE = 9  # version of the C interface, whose functions are:
_net, _int, _int64, _float, _pointer = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "nbsnn_version": (_int, []),
    "nbsnn_error": (ctypes.c_char_p, []),
    "nbsnn_target_name": (ctypes.c_char_p, [_int]),  # of those of this processor family, the best one last
    "nbsnn_has_target": (_int, [_int]),
    # target, T, image channels, pixels, least and greatest pixel, scale of floats, how far beyond they may be
    "nbsnn_new": (_net, [*[_int] * 6, _float, _float]),
    # head, wide, channels, positions, levels, fraction bits, retract, bias and its size
    "nbsnn_add_node": (_int, [_net, _int, _int, _int, _int, _int, _int, _int64, _pointer, _int64]),
    # source, inputs, groups, taps, shift, start, from and its size, multiplier, weight and its size, whether it is a digit
    "nbsnn_add_branch": (
        _int, [_net, _int, _int, _int, _int, _int, _pointer, _pointer, _int64, _pointer, _pointer, _int64, _int]
    ),
    # source, minimum, positions, start, from and its size
    "nbsnn_add_pool": (_int, [_net, _int, _int, _int, _pointer, _pointer, _int64]),
    "nbsnn_set_result": (_int, [_net, _pointer, _pointer, _int64]),  # bias, factors and their size
    "nbsnn_finish": (_int, [_net]),
    # images, whether floats, batch, mode, threads, images in flight, counts, sums, result, steps, spikes, nanoseconds, pool
    "nbsnn_run": (_int, [_net, _pointer, *[_int] * 5, *[_pointer] * 7]),
    "nbsnn_free": (None, [_net]),
    "nbsnn_rate_name": (ctypes.c_char_p, [_int]),  # kind of instruction
    "nbsnn_rate": (ctypes.c_double, [_int]),
}  # fmt: skip


@cache
def loaded() -> ctypes.CDLL | str:
    """The extension, or the reason why there is none."""
    found = load_extension(Path(__file__).parents[1], "nbsnn_version", _INTERFACE)
    if isinstance(found, str):
        return found
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def why_not() -> str | None:
    """None if the native backend can run, otherwise the reason, for messages."""
    wanted = os.environ.get("NBSNN_NATIVE") or "1"
    if wanted == "0":
        return "switched off by NBSNN_NATIVE=0"
    found = loaded()
    if isinstance(found, str):
        return found
    if wanted != "1" and wanted not in target_numbers():
        return f"{unknown('NBSNN_NATIVE', wanted, target_numbers())}; unset it"
    return None


def targets() -> tuple[Target, ...]:
    """Instruction sets that the extension can use on this processor, the best one last; none beyond the one in NBSNN_NATIVE."""
    known = tuple(target_numbers())
    wanted = os.environ.get("NBSNN_NATIVE")
    return known[: known.index(wanted) + 1] if wanted in known else known


@cache
def target_numbers() -> dict[Target, int]:
    """Their numbers in the extension."""
    found = loaded()
    numbers: dict[Target, int] = {}
    if isinstance(found, str):
        return {}
    while (name := found.nbsnn_target_name(len(numbers))) is not None:
        numbers[name.decode()] = len(numbers)
    return {name: number for name, number in numbers.items() if found.nbsnn_has_target(number)}


def check_result(result: int) -> None:
    """Raise ConfigError with the extension's reason if a function returned a negative number."""
    if result < 0:
        found = loaded()
        reason = found if isinstance(found, str) else found.nbsnn_error().decode()
        raise ConfigError(f"the native backend failed: {reason}; use backend='torch'")


@dataclass(frozen=True)
class Rate:
    """How many synapses a second one core handles with one kind of instruction, with operands in the first cache.

    Attributes:
        kind: "look-up" (synapses with spikes), "wide" (likewise, in tables of 64 entries), "dot" (products of 8-bit numbers) or
            "float" (single precision).
        instruction: its name and the bits of a vector.
        per_second: synapses.
    """

    kind: str
    instruction: str
    per_second: float


def measured_rates() -> tuple[Rate, ...]:
    """The limits of this processor, measured in a fraction of a second; none without the extension."""
    found = loaded()
    if isinstance(found, str):
        return ()
    rates, number = [], 0
    while (name := found.nbsnn_rate_name(number)) is not None:
        kind, _, instruction = name.decode().partition(" ")
        rates.append(Rate(kind, instruction, found.nbsnn_rate(number)))
        number += 1
    return tuple(rate for rate in rates if rate.per_second)
