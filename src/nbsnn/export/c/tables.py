"""Tables of numbers and structures as C text, and the bytes that they take on a chip."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

_WIDTH = 120  # columns of a line of numbers
_TYPES = {"u1": "uint8_t", "i2": "int16_t", "i4": "int32_t", "i8": "int64_t", "f8": "double"}
_STRUCTURES = {
    "nbsnn_axis": 28,
    "nbsnn_branch": 104,
    "nbsnn_node": 76,
    "nbsnn_part": 12,
    "nbsnn_output": 16,
    "nbsnn_network": 60,
}
"""Bytes of the runtime's structures where pointers have 32 bits."""


@dataclass
class Tables:
    """The tables so far.

    Attributes:
        prefix: of their names.
        lines: of C.
        flash: their bytes, with 32-bit pointers.
    """

    prefix: str
    lines: list[str] = field(default_factory=list)
    flash: int = 0

    def numbers(self, name: str, values: Tensor | np.ndarray[Any, Any], kind: str) -> str:
        """A table of numbers of a type in `_TYPES`; returns its name."""
        array = np.asarray(values.cpu().numpy() if isinstance(values, Tensor) else values).reshape(-1)
        self.flash += len(array) * int(kind[1])
        self.lines += [f"static const {_TYPES[kind]} {self.prefix}_{name}[{len(array)}] = {{", *_wrapped(array, kind), "};"]
        return f"{self.prefix}_{name}"

    def whole(self, name: str, values: Tensor) -> str:
        """An `nbsnn_numbers`."""
        narrow = bool((values.abs() < 2**31).all())
        table = self.numbers(name, values, "i4" if narrow else "i8")
        return fields(**{"narrow" if narrow else "wide": table})

    def structures(self, name: str, kind: str, items: Sequence[str], *, one: bool = False) -> str:
        """A table of structures, or one alone; returns its name."""
        self.flash += len(items) * _STRUCTURES[kind]
        head = f"static const {kind} {self.prefix}_{name}"
        self.lines += [f"{head} = {items[0]};"] if one else [f"{head}[{len(items)}] = {{", *(f"    {i}," for i in items), "};"]
        return f"{self.prefix}_{name}"


def comment(text: str) -> str:
    """A text that a comment may hold."""
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in text).replace("*/", "* /").replace("/*", "/ *")


def fields(**values: Any) -> str:
    """A designated initializer."""
    return "{" + ", ".join(f".{key} = {value}" for key, value in values.items() if value is not None) + "}"


def braces(values: Iterable[int]) -> str:
    return "{" + ", ".join(map(str, values)) + "}"


def _literal(number: Any, kind: str) -> str:
    if kind == "f8":
        return float(number).hex()
    if kind == "i8":
        return f"INT64_C({int(number)})"
    return "-2147483647 - 1" if int(number) == -(2**31) else str(int(number))


def _wrapped(array: np.ndarray[Any, Any], kind: str) -> list[str]:
    """Lines of numbers."""
    lines, line = [], "   "
    for number in array.tolist():
        text = f" {_literal(number, kind)},"
        if len(line) + len(text) > _WIDTH:
            lines.append(line)
            line = "   "
        line += text
    return [*lines, line]
