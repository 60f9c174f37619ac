"""Every error that nbsnn raises on purpose. Each message is one line: what, where, and what to do instead.

NbsnnError
├── ConfigError            a setting, recipe key or argument is not acceptable
├── QuantizationError      a network cannot be quantized as asked
├── ConversionError        a quantized network cannot become a spiking one
├── LoweringError          a quantized network has no integer form, or an image does not fit an integer network
├── CheckpointError        a file is missing, damaged, or of another network
├── DataError              a data set is missing or damaged
├── DivergedError          training left the finite numbers
├── LostPeerError          another process of the group ended
├── Interrupted            training was asked to stop; its state is saved
└── MissingDependencyError an optional package is not installed
"""

import difflib
from collections.abc import Iterable
from typing import Any

_LONGEST = 200  # characters of a value in a message
_MOST = 16  # names in a message


class NbsnnError(Exception):
    """Base class; the command line prints its message in one line and exits with code 2."""


class ConfigError(NbsnnError, ValueError):
    """A setting, recipe key or argument is not acceptable."""


class QuantizationError(NbsnnError, ValueError):
    """A network cannot be quantized as asked."""


class ConversionError(NbsnnError, ValueError):
    """A quantized network cannot become a spiking one; nothing was converted."""


class LoweringError(NbsnnError, ValueError):
    """A quantized network has no integer form, or an image does not fit the integer network."""


class CheckpointError(NbsnnError, RuntimeError):
    """A checkpoint is missing, damaged, or belongs to another network."""


class DataError(NbsnnError, RuntimeError):
    """A data set is missing or damaged."""


class DivergedError(NbsnnError, ArithmeticError):
    """The loss or a parameter is no longer a finite number."""


class LostPeerError(NbsnnError, RuntimeError):
    """Another process of the group ended."""


class Interrupted(NbsnnError):
    """Training was asked to stop; its state is saved."""


class MissingDependencyError(NbsnnError, ImportError):
    """An optional package is not installed; the message carries the install line."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}: pip install 'nbsnn[{extra}]'")


def shown(value: Any, *, longest: int = _LONGEST) -> str:
    """A value from outside, formatted for a message: one line, printable, truncated."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # a number of too many digits; lists in too many lists
        return f"({type(value).__name__}, too large to print)"
    text = text if len(text) <= longest else f"{text[:longest]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def unknown(kind: str, name: Any, known: Iterable[str], *, first: Iterable[str] = ()) -> str:
    """A message for an unknown name, with the close matches or, without any, the known names.

    Args:
        kind: what the name is of, such as "model".
        name: the unknown one.
        known: valid names.
        first: names to suggest before all others.
    """
    text, names = shown(name), sorted(map(shown, known))  # known names may be from a file too
    longer = [other for other in names if text and other.casefold().startswith(text.casefold())]
    close = list(dict.fromkeys([*map(shown, first), *longer, *difflib.get_close_matches(text, names, n=3, cutoff=0.5)]))[:3]
    some = ", ".join(names[:_MOST]) + (f" and {len(names) - _MOST} more" if len(names) > _MOST else "")
    remedy = f"did you mean {', '.join(close)}?" if close else f"known: {some}"
    return f"unknown {kind} {text!r}; {remedy}"
