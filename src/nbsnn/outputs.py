"""Which existing file an output may replace: one of the same kind, written by nbsnn, that the command does not read.

Commands check this before they start, so that they do not fail after an hour of work.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from nbsnn.errors import ConfigError
from nbsnn.files import check_writable, special_kind
from nbsnn.tensorfile import read_header
from nbsnn.zoo import PREFIX, list_zoo, locate

FIGURES, REPORT, STATE = "figures", "a report", "a training state"
INTEGER, PACKED = "an integer network", "a packed network"
PAGE_SUFFIXES = (".html", ".htm")  # of a report for a browser
_PAGE = "<!DOCTYPE html>", "nbsnn report</title>"  # how a report begins, and what it holds
_MOST_BYTES = 2**26  # of a file of figures


def network_kind(form: str) -> str:
    """The kind of a checkpoint: "a float network", "a quantized network", "a spiking network"."""
    return f"a {form} network"


def kind_of(path: Path) -> str | None:
    """The kind of a file written by nbsnn; None for other and for damaged files."""
    header = read_header(path)
    if header is None:
        return _kind_of_text(path)
    if "fingerprint" in header:
        return STATE
    if header["form"] == "integer":
        return INTEGER
    return PACKED if header.get("packed") else network_kind(header["form"])


def check_output(path: Path, kind: str, *, inputs: Iterable[str | Path | None] = (), overwrite: bool = False) -> None:
    """Raise an error if an output cannot be written at a path, or must not replace the file there.

    Args:
        path: where the output is to be written.
        kind: of the output, as `kind_of` returns it.
        inputs: files that the same command reads; bundled networks by their names.
        overwrite: allow replacing an input or a file of another kind.
    Raises:
        ConfigError: the path is an input or a file of another kind, and `overwrite` is not given; or, also with `overwrite`, it
            is a file that nbsnn did not write, a bundled network, or not a regular file.
        CheckpointError: nothing can be written there.
    """
    if not _is_there(path, inputs, overwrite):
        return
    found = kind_of(path)
    if found is None:
        raise ConfigError(f"{path}: is not a file that nbsnn wrote, or is damaged; name another file, or delete it first")
    if found != kind and not overwrite:
        raise ConfigError(f"{path}: holds {found}, and would be replaced by {kind}; name another file, or set overwrite=True")


def check_suffix(path: Path, kind: str, *suffixes: str) -> None:
    """Raise an error unless a path ends as files of a kind do.

    Raises:
        ConfigError: it does not; gives a name that does.
    """
    if path.suffix not in suffixes:
        raise ConfigError(f"{path}: {kind} is a {suffixes[0]} file; choose a name such as net{suffixes[0]}")


def check_replaceable(path: Path, *, inputs: Iterable[str | Path | None] = (), overwrite: bool = False) -> None:
    """The same for a file in a format that others write too: an existing one is only replaced on request.

    Raises:
        ConfigError: the file exists, and `overwrite` is not given; or, also with `overwrite`, it is a network of nbsnn's own, a
            bundled one included, or not a regular file.
        CheckpointError: nothing can be written there.
    """
    if not _is_there(path, inputs, overwrite):
        return
    if found := kind_of(path):
        raise ConfigError(f"{path}: holds {found}, which would be lost; name another file, or delete it first")
    if not overwrite:
        raise ConfigError(f"{path}: exists; name another file, or set overwrite=True")


def _is_there(path: Path, inputs: Iterable[str | Path | None], overwrite: bool) -> bool:
    """Whether an output would replace a file; raises an error for one that no kind of output may replace."""
    if str(path).startswith(PREFIX):
        raise ConfigError(f"{path}: {PREFIX} is for reading bundled networks; name a file")
    if special := special_kind(path):
        raise ConfigError(f"{path}: is {special}; name a file{' in it' if path.is_dir() else ''}")
    check_writable(path)
    if not path.exists():
        return False
    if any(is_same(path, locate(PREFIX + name)) for name in list_zoo()):
        raise ConfigError(f"{path}: is a bundled network; name another file")
    if any(is_same(path, given) for given in inputs) and not overwrite:
        raise ConfigError(f"{path}: is read by this command, and would be replaced; name another file, or set overwrite=True")
    return True


def is_same(path: Path, other: str | Path | None) -> bool:
    """Whether two names refer to the same file: equal, linked, or the name of a bundled network."""
    with suppress(OSError, ValueError):
        return other is not None and path.samefile(locate(other))
    return False


def _kind_of_text(path: Path) -> str | None:
    """The kind of a file written by `nbsnn report` or `nbsnn compare`."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        text = path.read_text(encoding="utf-8")
        if text.startswith(_PAGE[0]):
            return REPORT if _PAGE[1] in text else None
        figures = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(figures, dict):
        return None
    if figures.get("kind") in ("report", "comparison"):
        return REPORT
    return FIGURES if {"recipe_hash", "phases"} <= figures.keys() else None
