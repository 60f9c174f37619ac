"""Frozen dataclasses from plain values: typed, with unknown keys refused; merging of tables, and key=value overrides."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nbsnn.errors import ConfigError, shown, unknown


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The table `base` with the values of `over` on top, table by table."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def override_(table: dict[str, Any], override: str) -> None:
    """Put one key=value into a table in place; `phase.all.KEY` means every phase."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: write key=value, such as data.batch_size=64")
    *path, last = key.split(".")
    if path == ["phase", "all"]:
        for bits in table.get("phase", {}):
            override_(table, f"phase.{bits}.{last}={text}")
        return
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {part} has no keys of its own")
    table[last] = text


def convert(value: Any, kind: Any, key: str) -> Any:
    """`value` (from TOML, JSON or the command line) as the annotated type; the key is for the message."""
    if is_dataclass(kind):
        return _table(value, kind, key)
    origin, args = get_origin(kind), get_args(kind)
    try:
        if origin is dict:
            return {str(k): convert(v, args[1], f"{key}.{k}") for k, v in value.items()}
        if origin is tuple and not isinstance(value, Mapping):
            items = [part for part in value.split(",") if part] if isinstance(value, str) else value
            return tuple(convert(item, args[0], key) for item in items)
        if origin is Literal and value in args:
            return value
        if origin in (Union, types.UnionType):
            return None if value is None else convert(value, args[0], key)
        if kind is bool and str(value).lower() in ("true", "false", "1", "0"):
            return str(value).lower() in ("true", "1")
        if kind is int and not isinstance(value, (bool, float)):
            return int(value)
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is str and isinstance(value, str):
            return value
    except ConfigError:
        raise
    except (ValueError, TypeError, AttributeError, OverflowError):
        pass
    wanted = " or ".join(map(str, args)) if origin is Literal else getattr(kind, "__name__", str(kind))
    raise ConfigError(f"{key}={shown(value)}: must be {wanted}")


def _table(value: Any, kind: Any, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}={shown(value)}: must be a table of {', '.join(f.name for f in fields(kind))}")
    hints = get_type_hints(kind)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in hints:
            raise ConfigError(unknown("key", f"{prefix}{name}", [f"{prefix}{known}" for known in hints]))
    try:
        return kind(**{name: convert(item, hints[name], f"{prefix}{name}") for name, item in value.items()})
    except TypeError:
        missing = [f.name for f in fields(kind) if f.name not in value and f.default is f.default_factory is MISSING]
        raise ConfigError(f"{key or 'recipe'}: missing {', '.join(missing)}") from None
