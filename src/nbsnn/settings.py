"""Frozen dataclasses from plain values: typed, unknown keys are errors; merging of tables, and key=value overrides."""

import math
import re
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from nbsnn.errors import ConfigError, shown, unknown

_LARGEST = 2**63 - 1  # what torch and files hold
_MOST_DEPTH = 8  # of tables and lists in a value without a type
_WHOLE = re.compile(r"\s*[+-]?[0-9]+(_[0-9]+)*\s*")  # int() alone takes digits of every script
_WORDS = {int: "an integer", float: "a finite number", bool: "true or false", str: "text without NUL"}


class SettingError(ConfigError):
    """An invalid value of a setting; `key` is prefixed with the names of the enclosing tables."""

    def __init__(self, key: str, value: Any, wanted: str) -> None:
        super().__init__(f"{key}={shown(value)}: must be {wanted}")
        self.key, self.value, self.wanted = key, value, wanted


class _UnknownKey(Exception):
    """An unknown key of a table, with the valid keys."""

    def __init__(self, key: str, siblings: list[str]) -> None:
        super().__init__(key)
        self.key, self.siblings = key, siblings


def require(condition: bool, key: str, value: Any, wanted: str) -> None:
    """Raise `SettingError` unless the condition holds; the message is "KEY=VALUE: must be WANTED"."""
    if not condition:
        raise SettingError(key, value, wanted)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The table `base` with the values of `over` on top, table by table."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def override_(table: dict[str, Any], override: str) -> None:
    """Put one key=value into a table in place; `phase.all.KEY` means every phase."""
    key, equals, text = (part.strip() for part in override.partition("="))
    *path, last = key.split(".")
    if not equals or not all([*path, last]):
        raise ConfigError(f"{shown(override)}: write key=value, such as data.batch_size=64")
    if path == ["phase", "all"] and isinstance(table.get("phase", {}), dict):
        for bits in table.get("phase", {}):
            override_(table, f"phase.{bits}.{last}={text}")
        return
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{shown(override)}: {shown(part)} has no keys of its own")
    table[last] = _parsed(text) if path[:2] == ["model", "args"] else text


def _parsed(text: str) -> Any:
    """The value of a setting without a type: a number or a list as TOML writes them, else text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text


def typed(value: Any, kind: Any, key: str = "") -> Any:
    """`value` (from TOML, JSON or the command line) as the annotated type; the key is for the message.

    Raises:
        ConfigError: an unknown key, with close matches from all tables, or a value of another type.
    """
    try:
        return _typed(value, kind, key)
    except _UnknownKey as error:
        last = error.key.rpartition(".")[2]
        elsewhere = [known for known in _keys(kind, key) if known.rpartition(".")[2] == last]
        raise ConfigError(unknown("key", error.key, error.siblings, first=elsewhere)) from None


def _typed(value: Any, kind: Any, key: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:  # the dataclass checks it
        return value
    if is_dataclass(kind):
        return _table(value, kind, key)
    if kind is Any:
        return _any(value, key)
    if origin in (Union, types.UnionType):
        return None if value is None else _typed(value, args[0], key)
    if origin is Literal:
        require(isinstance(value, str) and value in args, key, value, " or ".join(map(str, args)))
        return value
    if origin is dict:
        require(isinstance(value, Mapping), key, value, "a table")
        return {str(k): _typed(v, args[1], f"{key}.{k}") for k, v in value.items()}
    if origin is tuple:
        items = [part for part in value.split(",") if part] if isinstance(value, str) else value
        require(isinstance(items, (list, tuple)), key, value, "a list, such as 0.5,0.75")
        return tuple(_typed(item, args[0], key) for item in items)
    try:
        return _plain(value, kind)
    except (ValueError, TypeError, OverflowError):
        raise SettingError(key, value, _WORDS.get(kind, str(kind))) from None


def _any(value: Any, key: str, depth: int = 0) -> Any:
    """A value of any kind that JSON can hold."""
    require(depth < _MOST_DEPTH, key, "...", f"in at most {_MOST_DEPTH} tables or lists")
    if isinstance(value, Mapping):
        return {str(name): _any(item, f"{key}.{name}", depth + 1) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_any(item, f"{key}.{index}", depth + 1) for index, item in enumerate(value)]
    known = value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
    require(known, key, value, "a number, true or false, text, a list or a table")
    return value


def _plain(value: Any, kind: type) -> Any:
    """A number, text or truth value; raises ValueError for a value of another kind."""
    if kind is bool and str(value).lower() in ("true", "false", "1", "0"):
        return str(value).lower() in ("true", "1")
    if kind is int and (type(value) is int or (isinstance(value, str) and _WHOLE.fullmatch(value))):
        number = int(value)
        if abs(number) <= _LARGEST:
            return number
    if kind is float and type(value) in (int, float, str) and (not isinstance(value, str) or value.isascii()):
        real = float(value)
        if math.isfinite(real):
            return real
    if kind is str and isinstance(value, str) and "\0" not in value:
        return value
    raise ValueError(kind)


def _table(value: Any, kind: Any, key: str) -> Any:
    require(isinstance(value, Mapping), key or "recipe", value, f"a table of {', '.join(f.name for f in fields(kind))}")
    hints = get_type_hints(kind)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in hints:
            raise _UnknownKey(f"{prefix}{name}", [f"{prefix}{known}" for known in hints])
    missing = [f.name for f in fields(kind) if f.name not in value and f.default is f.default_factory is MISSING]
    if missing:
        raise ConfigError(f"{key or 'recipe'}: missing {', '.join(missing)}")
    values = {name: _typed(item, hints[name], f"{prefix}{name}") for name, item in value.items()}
    try:
        return kind(**values)
    except SettingError as error:  # from a check of the dataclass itself, which does not know its table
        raise SettingError(f"{prefix}{error.key}", error.value, error.wanted) from None


def _keys(kind: Any, key: str) -> Iterator[str]:
    """All keys of a table and the tables in it; N stands for the name of a table."""
    prefix = f"{key}." if key else ""
    for name, hint in get_type_hints(kind).items() if is_dataclass(kind) else ():
        if get_origin(hint) is dict:
            yield from _keys(get_args(hint)[1], f"{prefix}{name}.N")
        elif is_dataclass(hint):
            yield from _keys(hint, f"{prefix}{name}")
        else:
            yield f"{prefix}{name}"
