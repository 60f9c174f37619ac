"""Runs a script of reproduce/ as its command line would, in this process: importing torch anew takes longer than the rest."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from nbsnn.console import exit_code

REPRODUCE = Path(__file__).parents[1] / "reproduce"


@contextmanager
def scripts(group: str) -> Iterator[dict[str, ModuleType]]:
    """The modules of reproduce/<group> by name; both groups have one called `options`, so none stays imported."""
    folder = REPRODUCE / group
    names = [path.stem for path in folder.glob("*.py")]
    sys.path.insert(0, str(folder))
    try:
        for name in names:
            sys.modules.pop(name, None)
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)


def run(modules: dict[str, ModuleType], script: str, words: list[str]) -> int:
    """The exit code of `python <script>.py <words>`."""
    module = modules[script]
    parse = getattr(module, "parse", modules["options"].parse)
    arguments = parse("", words)
    return exit_code(lambda: module.run(arguments), flags=modules["options"].FLAGS)
