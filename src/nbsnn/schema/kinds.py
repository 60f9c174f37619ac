"""Kinds of value that a field may have: a check for each, and what makes tables and lists of them."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from nbsnn.errors import shown

Check = Callable[[Any, str], None]  # of a value and the path of its field; raises Misfit

MOST_DEPTH = 16  # of tables in tables
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # control characters, halves of surrogates


class Misfit(ValueError):
    """An invalid field; the message names the field, its value and what is valid."""


class later(NamedTuple):
    """A field that files of earlier versions lack."""

    check: Check


def refuse(value: Any, path: str, wanted: str) -> NoReturn:
    """Raise the Misfit of one field."""
    raise Misfit(f"{shown(path)}={shown(value)} must be {wanted}")


def whole(low: int, high: int) -> Check:
    """An integer from `low` to `high`; True and 1.0 are not valid."""

    def check(value: Any, path: str) -> None:
        if type(value) is not int or not low <= value <= high:
            refuse(value, path, f"an integer from {low} to {high}")

    return check


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number from `low` to `high`."""
    bounds = "" if math.isinf(low) and math.isinf(high) else f" from {low:g}" + ("" if math.isinf(high) else f" to {high:g}")

    def check(value: Any, path: str) -> None:
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            refuse(value, path, f"a finite number{bounds}")

    return check


def choice(*allowed: str) -> Check:
    """One of some words."""

    def check(value: Any, path: str) -> None:
        if type(value) is not str or value not in allowed:
            refuse(value, path, " or ".join(allowed))

    return check


def text(longest: int = 512) -> Check:
    """Characters on one line, which any terminal can print."""

    def check(value: Any, path: str) -> None:
        if type(value) is not str or len(value) > longest or _UNPRINTABLE.search(value):
            refuse(value, path, f"text of up to {longest} characters on one line")

    return check


check_name = text(1024)  # of a tensor


def flag(value: Any, path: str) -> None:
    """True or False."""
    if type(value) is not bool:
        refuse(value, path, "true or false")


def nullable(inner: Check) -> Check:
    """None, or a value that `inner` accepts."""
    return lambda value, path: None if value is None else inner(value, path)


def list_of(inner: Check, least: int, most: int) -> Check:
    """A list of some length."""

    def check(value: Any, path: str) -> None:
        if type(value) is not list or not least <= len(value) <= most:
            refuse(value, path, f"a list of {least} to {most}" if least < most else f"a list of {most}")
        for index, item in enumerate(value):
            inner(item, f"{path}.{index}")

    return check


def map_of(inner: Check, most: int) -> Check:
    """A table with free names."""
    name_check = text()

    def check(value: Any, path: str) -> None:
        if type(value) is not dict or len(value) > most:
            refuse(value, path, f"a table of up to {most}")
        for name, item in value.items():
            name_check(name, f"a name in {path}")
            inner(item, f"{path}.{name}")

    return check


def table(fields: Mapping[str, Check | later]) -> Check:
    """A table with these fields, all required except `later` ones."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, Mapping):
            refuse(value, path, "a table")
        prefix = f"{path}." if path else ""
        for name in fields:
            if name not in value and not isinstance(fields[name], later):
                raise Misfit(f"{prefix}{name} is missing")
        for name, item in value.items():
            if name not in fields:
                raise Misfit(f"{shown(prefix + str(name))} is unknown")
            field = fields[name]
            (field.check if isinstance(field, later) else field)(item, f"{prefix}{name}")

    return check


def plain(value: Any, path: str, depth: int = 0) -> None:
    """Any JSON value of moderate depth."""
    if depth > MOST_DEPTH:
        raise Misfit(f"{path[:60]}...: tables or lists in more than {MOST_DEPTH} others")
    if type(value) is dict:
        for name, item in value.items():
            text()(name, f"a name in {path}")
            plain(item, f"{path}.{name}", depth + 1)
    elif type(value) is list:
        for index, item in enumerate(value):
            plain(item, f"{path}.{index}", depth + 1)
    elif type(value) in (int, float):
        number()(value, path)
    elif type(value) is str:
        text(10_000)(value, path)
    elif value is not None and type(value) is not bool:
        refuse(value, path, "a number, text, a list or a table")
