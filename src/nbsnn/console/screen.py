"""Output of a command: lines, one-line errors, JSON, and the exit code."""

import json
import math
import os
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
from rich.text import Text

from nbsnn.console.flags import Flag, in_flags
from nbsnn.console.streams import OutputClosed, guarded
from nbsnn.distributed import World, rank_in_environment
from nbsnn.errors import Interrupted, NbsnnError
from nbsnn.files import known_remedy

_ENDLESS = 100_000  # columns if it is not a terminal: nothing is wrapped or cut
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


class _Screen(Console):
    """A console on the current stream, with the width of its terminal or of COLUMNS; unlimited if it is not a terminal."""

    @property
    def size(self) -> ConsoleDimensions:
        columns = os.environ.get("COLUMNS", "")
        if columns.isascii() and columns.isdigit() and int(columns[:6]) > 0:
            return ConsoleDimensions(int(columns[:6]), 25)
        try:
            wide, high = os.get_terminal_size(self.file.fileno())
        except (OSError, ValueError, AttributeError):
            return ConsoleDimensions(_ENDLESS, 25)
        return ConsoleDimensions(wide or 80, high or 25)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        raise AttributeError("the terminal determines the width")


# The constructor would read COLUMNS differently; these two numbers are never used.
out = _Screen(width=80, height=25)
err = _Screen(width=80, height=25, stderr=True)


def speak_on_main_only(world: World) -> None:
    """Let only rank 0 print; errors are printed by each process that has one."""
    out.quiet = err.quiet = not world.is_main


def without_controls(text: str) -> str:
    """A text without control characters, which a file name may contain, except for line ends."""
    return text.translate(_CONTROL)


def say(text: str, *, style: str = "", to: Console = out) -> None:
    """Lines of a result, wrapped at words on a terminal; longer words are not broken."""
    for line in without_controls(text).split("\n"):
        for part in wrapped(line, to.width):
            write(part, to, style=style)


def wrapped(line: str, width: int) -> list[str]:
    """Wrap a line to at most `width` columns, without breaking words."""
    if cell_len(line) <= width:
        return [line]
    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]


def write(line: str, to: Console, *, style: str = "") -> None:
    """Print a line without wrapping."""
    to.print(Text(line, style=style), soft_wrap=True, highlight=False)


def note(text: str) -> None:
    """Print a line about progress to standard error."""
    write(without_controls(text), err)


def fail(text: str) -> None:
    """Print an error in one line; with the rank, unless it is rank 0."""
    rank = rank_in_environment()
    who = f"rank {rank}: " if rank else ""
    err.quiet = False
    line = Text.assemble(("error:", "bold red"), f" {who}{without_controls(' '.join(text.split()))}")
    err.print(line, highlight=False, soft_wrap=True)


def show_json(value: Any) -> None:
    """Print a result as JSON; numbers that are not finite become null."""
    text = json.dumps(_finite(value), ensure_ascii=True)
    out.print_json(text, indent=2, ensure_ascii=not out.encoding.startswith("utf"))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def exit_code(run: Callable[[], Any], *, flags: Mapping[str, Flag] | None = None) -> int:
    """Run a command: 0, 2 for bad input (one line on standard error), 130 if interrupted with its state saved.

    Args:
        run: may return an exit code.
        flags: the command's options for arguments named in errors of the library.
    """
    with guarded():
        try:
            if sys.stdout is None:
                raise NbsnnError("standard output is closed; redirect it to a file, or to /dev/null")
            code = run()
            sys.stdout.flush()
        except OutputClosed:
            return 0
        except Interrupted as stop:
            note(in_flags(str(stop), flags or {}))
            return 130
        except NbsnnError as error:
            fail(in_flags(str(error), flags or {}))
            return 2
        except KeyboardInterrupt:
            note("interrupted")
            return 130
        except OSError as error:
            if error.strerror is None:
                raise
            where, remedy = f": {error.filename}" if error.filename else "", known_remedy(error)
            fail(error.strerror + where + (f"; {remedy}" if remedy else ""))
            return 2
        except (MemoryError, RuntimeError) as error:
            if not _is_lack_of_memory(error):
                raise
            fail("not enough memory; use smaller batches, fewer images, or a smaller network")
            return 2
    return code if isinstance(code, int) else 0


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether an error is out of memory: torch has a class for CUDA, and only a message for the CPU."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
