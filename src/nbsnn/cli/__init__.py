"""The command line. Each verb is a file of the same name, which reads options, calls the library, and prints the result."""

import sys
from collections.abc import Sequence

from nbsnn import console
from nbsnn.cli.app import app, flags_of, run

# isort: off
from nbsnn.cli import demo, init, check, train, report, quantize, import_, eval, convert  # noqa: F401  (each registers its verb,
from nbsnn.cli import compare, finetune, classify, lower, export, bench, energy, info, pack, zoo, recipes  # noqa: F401  and help lists them in this order)
# isort: on

__all__ = ["app", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input (one line on standard error), 130 if interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return console.exit_code(lambda: run(words), flags=flags_of(words))
