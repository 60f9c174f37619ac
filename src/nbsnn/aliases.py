"""Former names of settings: still accepted everywhere, and still used in the hash of a recipe.

To rename a setting, rename the field and add a line to `_FORMER`. TOML files, overrides and headers with the former name keep
their meaning, and hashes of recipes do not change.
"""

from collections.abc import Mapping
from typing import Any

from nbsnn.errors import ConfigError

_FORMER = {  # table → name → former name; tables named by bits, such as phase.2, are "phase"
    "optim": {"lr_gamma": "decay", "lr_batch_size": "rate_batch", "recalibrate_batches": "norm_batches"},
    "phase": {"ema_decay": "average"},
}
_DEPTH = 3  # of tables: variant, phase, bits


def former_names(table: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a table ("optim", "phase") under their first names."""
    former = _FORMER.get(table, {})
    return {former.get(name, name): value for name, value in settings.items()}


def current_key(key: str) -> str:
    """The current key of a setting: "optim.decay" → "optim.lr_gamma"; other keys are returned unchanged."""
    *path, name = key.split(".")
    return ".".join([*path, _current(_table_at(path)).get(name, name)])


def current_names(settings: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's tables, or tables with recipes in them, with the current names of settings.

    Raises:
        ConfigError: a setting is given under both of its names.
    """
    current, renamed = _current(_table_at(path)), {}
    for name, value in settings.items():
        new = current.get(name, name)
        if new != name and new in settings:
            here = ".".join(map(str, path))
            raise ConfigError(f"{here}.{name} is the former name of {here}.{new}; give one of the two")
        inner = isinstance(value, Mapping) and len(path) < _DEPTH
        renamed[new] = current_names(value, (*path, name)) if inner else value
    return renamed


def _table_at(path: tuple[str, ...] | list[str]) -> str:
    """The table with renamed settings at this path, at the top level or in a variant of a recipe; "" if there is none."""
    if path[-1:] and path[-1] == "optim":
        return "optim"
    return "phase" if len(path) >= 2 and path[-2] == "phase" else ""


def _current(table: str) -> dict[str, str]:
    return {former: name for name, former in _FORMER.get(table, {}).items()}
