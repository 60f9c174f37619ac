"""Standard output and standard error while a command runs: they take every text, and say in one line if they take no more."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from nbsnn.errors import NbsnnError

# What our own texts hold beyond ASCII; other characters, such as those of a class name, are written as \xe9.
_SPELLED = {
    "→": "->", "←": "<-", "×": "x", "−": "-", "±": "+-", "·": "*", "≤": "<=", "≥": ">=", "≈": "~", "θ": "theta", "…": "...",
    "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "²": "^2", "─": "-", "━": "-", "│": "|", "•": "*",
}  # fmt: skip


class OutputClosed(Exception):
    """Whoever read standard output has read enough."""


class _Stream:
    """Writes to a stream of any encoding: what it lacks is spelled in ASCII."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding: str = getattr(stream, "encoding", None) or "utf-8"
        self.errors = "strict"

    def write(self, text: str) -> int:
        try:
            self._stream.write(spell(text, self.encoding))
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._failed(error)

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def _failed(self, error: Exception) -> None:
        """What is still buffered goes nowhere, so that Python does not complain of it at the end."""
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


class _Output(_Stream):
    """Standard output: a result that cannot be written is an error."""

    def _failed(self, error: Exception) -> None:
        super()._failed(error)
        if isinstance(error, BrokenPipeError):
            raise OutputClosed from None
        raise NbsnnError(f"cannot write to standard output: {getattr(error, 'strerror', None) or error}") from None


class _Notes(_Stream):
    """Standard error: a remark that nobody can read does not end a run."""


@contextmanager
def guarded() -> Iterator[None]:
    """While the context is open, `sys.stdout` and `sys.stderr` are such streams.

    Raises:
        NbsnnError: standard output is closed, or takes no more.
        OutputClosed: the reader of a pipe has gone.
    """
    _hold_closed_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout = _Output(before[0]) if before[0] else None  # type: ignore[assignment]
    sys.stderr = _Notes(before[1]) if before[1] else None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _hold_closed_descriptors() -> None:
    """Give closed descriptors 0 to 2 to the null device, lest a checkpoint be opened as one and get what others print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free one


def spell(text: str, encoding: str) -> str:
    """A text with what an encoding lacks in ASCII; lone surrogates, which stand for bytes of no encoding, too."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(_spelled(character, encoding) for character in text)
    return text


def _spelled(character: str, encoding: str) -> str:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return _SPELLED.get(character, character.encode("ascii", "backslashreplace").decode())
    return character
