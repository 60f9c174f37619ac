"""Standard output and standard error of a command: they accept any text, and fail with one line if writing fails."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from nbsnn.errors import NbsnnError

# Non-ASCII characters in our own texts; others, such as in a class name, are written as \xe9.
_SPELLED = {
    "→": "->", "←": "<-", "×": "x", "−": "-", "±": "+-", "·": "*", "≤": "<=", "≥": ">=", "≈": "~", "θ": "theta", "…": "...",
    "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "²": "^2", "─": "-", "━": "-", "│": "|", "•": "*",
}  # fmt: skip


class OutputClosed(Exception):
    """The reader of standard output has closed it."""


class _Stream:
    """Writes to a stream of any encoding; characters that it lacks are replaced by ASCII."""

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
        """Discard the buffer, so that Python does not report an error at exit."""
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
    """Standard error: a failed write is ignored, so it does not end a run."""


@contextmanager
def guarded() -> Iterator[None]:
    """Context manager that replaces `sys.stdout` and `sys.stderr` by such streams.

    Raises:
        NbsnnError: standard output is closed, or cannot be written.
        OutputClosed: the reader of a pipe has closed it.
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
    """Open closed descriptors 0 to 2 on the null device, so that a checkpoint is not opened as one of them and printed to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free one


def spell(text: str, encoding: str) -> str:
    """Replace characters that an encoding lacks by ASCII, including lone surrogates, which stand for undecodable bytes."""
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
