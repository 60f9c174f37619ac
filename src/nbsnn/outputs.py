"""What an output may replace: a file that nbsnn wrote, of the same kind, and none that the same command reads.

Commands ask here before they begin, so that nothing is found out after an hour of work.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from nbsnn.errors import ConfigError
from nbsnn.files import check_writable, special_kind
from nbsnn.tensorfile import read_header
from nbsnn.zoo import PREFIX, list_zoo, locate

FIGURES, INTEGER, PACKED, STATE = "figures", "an integer network", "a packed network", "a training state"
_MOST_BYTES = 2**26  # of a file of figures


def network_kind(form: str) -> str:
    """The kind of a checkpoint: "a float network", "a quantized network", "a spiking network"."""
    return f"a {form} network"


def kind_of(path: Path) -> str | None:
    """What a file of nbsnn holds; None of any other file, and of a damaged one."""
    header = read_header(path)
    if header is None:
        return FIGURES if _holds_figures(path) else None
    if "fingerprint" in header:
        return STATE
    if header["form"] == "integer":
        return INTEGER
    return PACKED if header.get("packed") else network_kind(header["form"])


def check_output(path: Path, kind: str, *, inputs: Iterable[str | Path | None] = (), overwrite: bool = False) -> None:
    """Refuse a place where an output would be lost, or would replace what it must not.

    Args:
        path: where the output is to be written.
        kind: of the output, as `kind_of` says it.
        inputs: files that the same command reads; bundled networks by their names.
        overwrite: allow to replace an input, and a file of another kind.
    Raises:
        ConfigError: an input or a file of another kind is there, and `overwrite` is not given; or, whatever is given, a file
            that nbsnn did not write, a bundled network, or no regular file.
        CheckpointError: nothing can be written there.
    """
    if str(path).startswith(PREFIX):
        raise ConfigError(f"{path}: {PREFIX} is for reading bundled networks; name a file")
    if special := special_kind(path):
        raise ConfigError(f"{path}: is {special}; name a file{' in it' if path.is_dir() else ''}")
    check_writable(path)
    if not path.exists():
        return
    if any(is_same(path, locate(PREFIX + name)) for name in list_zoo()):
        raise ConfigError(f"{path}: is a bundled network; name another file")
    if any(is_same(path, given) for given in inputs) and not overwrite:
        raise ConfigError(f"{path}: is read by this command, and would be replaced; name another file, or set overwrite=True")
    found = kind_of(path)
    if found is None:
        raise ConfigError(f"{path}: is not a file that nbsnn wrote, or is damaged; name another file, or delete it first")
    if found != kind and not overwrite:
        raise ConfigError(f"{path}: holds {found}, and would be replaced by {kind}; name another file, or set overwrite=True")


def is_same(path: Path, other: str | Path | None) -> bool:
    """Whether two names are of one file: equal, linked, or a bundled network by its name."""
    with suppress(OSError, ValueError):
        return other is not None and path.samefile(locate(other))
    return False


def _holds_figures(path: Path) -> bool:
    """Whether a file is what `nbsnn report --out` writes."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return False
        figures = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(figures, dict) and {"recipe_hash", "phases"} <= figures.keys()
