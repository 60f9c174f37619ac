"""The command line: each verb is the file of its name, which reads options, calls the library, and prints the result."""

import sys
from collections.abc import Sequence

from nbsnn import console
from nbsnn.cli import (  # noqa: F401  (each registers its verb; help lists them in this order)
    bench,
    classify,
    convert,
    demo,
    eval,
    finetune,
    info,
    lower,
    pack,
    recipes,
    report,
    train,
    zoo,
)  # isort: skip
from nbsnn.cli.app import app

__all__ = ["app", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input (one line on standard error), 130 if interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return console.exit_code(lambda: app(args=words, prog_name="nbsnn", standalone_mode=False))
