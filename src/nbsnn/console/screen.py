"""The two streams as a person reads them: lines, errors of one line, JSON, and the exit code of a command."""

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

_ENDLESS = 100_000  # columns of what is no terminal: nothing is wrapped or cut there
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


class _Screen(Console):
    """A stream of the moment, as wide as its terminal, or as COLUMNS says; endless where it is none."""

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
        raise AttributeError("the terminal decides")


# The constructor would read COLUMNS in its own way; both numbers are never used.
out = _Screen(width=80, height=25)
err = _Screen(width=80, height=25, stderr=True)


def speak_on_main_only(world: World) -> None:
    """Let one of several processes speak; errors are told by each that has one."""
    out.quiet = err.quiet = not world.is_main


def without_controls(text: str) -> str:
    """A text without control characters, which a file's name may hold, but for ends of lines."""
    return text.translate(_CONTROL)


def say(text: str, *, style: str = "", to: Console = out) -> None:
    """Lines of a result, wrapped at words on a terminal; a longer word is left whole."""
    for line in without_controls(text).split("\n"):
        for part in wrapped(line, to.width):
            write(part, to, style=style)


def wrapped(line: str, width: int) -> list[str]:
    """A line as lines of at most `width` columns, as far as words allow."""
    if cell_len(line) <= width:
        return [line]
    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]


def write(line: str, to: Console, *, style: str = "") -> None:
    """A line as it is, however long."""
    to.print(Text(line, style=style), soft_wrap=True, highlight=False)


def note(text: str) -> None:
    """A line about what is going on."""
    write(without_controls(text), err)


def fail(text: str) -> None:
    """The one line of an error; of another process than the main one, with its rank."""
    rank = rank_in_environment()
    who = f"rank {rank}: " if rank else ""
    err.quiet = False
    line = Text.assemble(("error:", "bold red"), f" {who}{without_controls(' '.join(text.split()))}")
    err.print(line, highlight=False, soft_wrap=True)


def show_json(value: Any) -> None:
    """Machine-readable result; numbers that are not finite become null, which JSON has."""
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
        flags: what the command calls the arguments that errors of the library name.
    """
    with guarded():
        try:
            if sys.stdout is None:
                raise NbsnnError("standard output is closed; send it to a file, or to /dev/null")
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
            fail(error.strerror + (f": {error.filename}" if error.filename else ""))
            return 2
        except (MemoryError, RuntimeError) as error:
            if not _is_lack_of_memory(error):
                raise
            fail("not enough memory; take smaller batches, fewer images, or a smaller network")
            return 2
    return code if isinstance(code, int) else 0


def _is_lack_of_memory(error: Exception) -> bool:
    """torch has a class for CUDA's, and only a text for the processor's."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
