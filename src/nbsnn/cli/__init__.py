"""The command line: each verb parses, calls one library function, and prints."""

import sys
from collections.abc import Sequence

from nbsnn import console
from nbsnn.cli import files, finetune, integer, spiking, training  # noqa: F401  (their verbs)
from nbsnn.cli.app import app

__all__ = ["app", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input (one line on standard error), 130 if interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return console.exit_code(lambda: app(args=words, prog_name="nbsnn", standalone_mode=False))
