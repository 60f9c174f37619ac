"""Registries by name, to which any package can add; names are unique."""

from collections.abc import Collection
from typing import TypeVar

from nbsnn.errors import ConfigError

Thing = TypeVar("Thing")


def add_named(table: dict[str, Thing], kind: str, name: str, thing: Thing, *, taken: Collection[str] = ()) -> Thing:
    """Add an object to a registry under its name, and return it. Adding the same object again is allowed.

    Args:
        table: name → object.
        kind: what the registry holds, for messages: "exporter".
        name, thing: the object and its name.
        taken: names that are in use although they are not in the table.
    Raises:
        ConfigError: the name is taken.
    """
    if (name in table or name in taken) and table.get(name) != thing:
        raise ConfigError(f"{kind} {name!r} exists; choose another name")
    table[name] = thing
    return thing
