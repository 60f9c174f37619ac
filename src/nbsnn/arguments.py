"""Types of the arguments of public functions, checked against their annotations."""

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union

import numpy as np

from nbsnn.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")

# Accepted for an annotation, and the words for it.
_PLAIN: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a text"),
    bool: ((bool, np.bool_), "True or False"),
    int: ((Integral,), "an integer"),
    float: ((Real,), "a number"),
    Path: ((Path, os.PathLike), "a path"),
    type(None): ((type(None),), "None"),
}
_GENERIC: dict[Any, tuple[tuple[Any, ...], str]] = {
    Mapping: ((Mapping,), "a dictionary"), dict: ((Mapping,), "a dictionary"), Callable: ((Callable,), "a function"),
}  # fmt: skip


def checked_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator that raises an error for an argument of another type than its annotation says.

    Only annotations made of texts, numbers, paths, None, literals, dictionaries, functions and the package's dataclasses are
    checked; networks, images and loaders have checks of their own, with better remedies. Numbers of NumPy become Python's.

    Raises:
        ConfigError: names the argument, what was given and what to give.
    """
    signature = inspect.signature(function)

    @functools.cache
    def wanted() -> dict[str, tuple[tuple[type, ...], str]]:
        hints = typing.get_type_hints(function)  # at the first call: annotations may name what is defined later
        found = {name: _kinds(hints.get(name)) for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
        return {name: kinds for name, kinds in found.items() if kinds is not None}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # an argument too many or too few: Python's own message names the function
        for name, (kinds, words) in wanted().items():
            if name not in given.arguments:
                continue
            value = given.arguments[name]
            if not _fits(value, kinds):
                raise ConfigError(f"{name} is {described_kind(value)}; give {words}")
            if isinstance(value, np.generic):  # a number that no header of a file could hold
                given.arguments[name] = value.item()
        return function(*given.args, **given.kwargs)

    return checked


def described_kind(value: object) -> str:
    """A description of a value with an article: "a list of 3 Tensors"."""
    name = value.__name__ if isinstance(value, type) else type(value).__name__
    if isinstance(value, type):
        return f"the class {name}"
    article = "an" if name[:1] in "AEIOaeio" else "a"
    if type(value).__module__ == "numpy":
        return f"a numpy array of {getattr(value, 'dtype', name)}"
    if isinstance(value, (list, tuple)) and value:
        return f"{article} {name} of {len(value)} {type(value[0]).__name__}s"
    return "None" if value is None else f"{article} {name}"


def _kinds(hint: Any) -> tuple[tuple[type, ...], str] | None:
    """The types that an annotation allows, in words too; None if it holds others than those of `checked_arguments`."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        parts = [_kinds(part) for part in typing.get_args(hint)]
        if None in parts:
            return None
        known = [part for part in parts if part is not None]
        return tuple(kind for kinds, _ in known for kind in kinds), " or ".join(words for _, words in known if words != "None")
    if origin is Literal:
        values = typing.get_args(hint)
        return tuple({type(value) for value in values}), "one of " + ", ".join(map(str, values))
    if origin in _GENERIC:
        return _GENERIC[origin]
    if isinstance(hint, type) and is_dataclass(hint) and hint.__module__.startswith("nbsnn."):
        needed = ", ".join(f.name for f in fields(hint) if f.default is MISSING and f.default_factory is MISSING)
        return (hint,), f"nbsnn.{hint.__name__}({needed})"
    return _PLAIN.get(hint) if isinstance(hint, type) else None


def _fits(value: object, kinds: tuple[type, ...]) -> bool:
    if isinstance(value, bool) and bool not in kinds:  # Python counts it among the integers
        return False
    return isinstance(value, kinds)
