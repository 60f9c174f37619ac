"""Tables of things by name, to which any package may add; a name stands for one thing."""

from collections.abc import Collection
from typing import TypeVar

from nbsnn.errors import ConfigError

Thing = TypeVar("Thing")


def add_named(table: dict[str, Thing], kind: str, name: str, thing: Thing, *, taken: Collection[str] = ()) -> Thing:
    """Put a thing into a table under its name, and return it. The same thing may be added again.

    Args:
        table: name → thing.
        kind: of what is in it, for messages: "exporter".
        name, thing: what is added.
        taken: names that stand for other things although they are not in the table.
    Raises:
        ConfigError: the name is taken.
    """
    if (name in table or name in taken) and table.get(name) != thing:
        raise ConfigError(f"{kind} {name!r} exists; choose another name")
    table[name] = thing
    return thing
