"""Errors of the library with command-line options: `overwrite=True` becomes `--overwrite`."""

import re
from collections.abc import Mapping
from typing import NamedTuple

_ARGUMENT = re.compile(r"""(?<![\w.-])([a-z][a-z0-9_.]*)=(True|False|"[^"]*"|'[^']*'|[^\s,;:()"']+)?""")


class Flag(NamedTuple):
    """The option for an argument of the library; `off` is the option for False, if there is one."""

    on: str
    off: str = ""


def in_flags(message: str, flags: Mapping[str, Flag]) -> str:
    """Replace arguments in a message by the options for them.

    Args:
        message: of an error of the library.
        flags: by the argument's name; in the name of a phase's setting, such as phase.4.lr, N stands for the bits.
    """

    def flag(found: re.Match[str]) -> str:
        known = flags.get(re.sub(r"^phase\.\d+\.", "phase.N.", found[1]))
        if known is None:
            return found[0]
        value = (found[2] or "").strip("\"'")
        if value in ("True", "False"):
            return known.on if value == "True" else known.off or f"without {known.on}"
        return f"{known.on} {value}".rstrip()

    return _ARGUMENT.sub(flag, message)
