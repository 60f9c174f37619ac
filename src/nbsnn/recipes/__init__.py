"""The bundled recipes, one TOML file per (data set, network), and how any recipe is read and overridden."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from nbsnn.errors import ConfigError, unknown
from nbsnn.recipe import Recipe, recipe_from_dict
from nbsnn.settings import merge, override_


def list_recipes() -> list[str]:
    """Names that `load_recipe` knows, variants (`name:variant`) included."""
    names = []
    for group in sorted(resources.files("nbsnn.recipes").iterdir(), key=lambda p: p.name):
        if not group.is_dir():
            continue
        for file in sorted(group.iterdir(), key=lambda p: p.name):
            if file.name.endswith(".toml") and not file.name.startswith("_"):
                name = f"{group.name}/{file.name.removesuffix('.toml')}"
                names += [name, *(f"{name}:{variant}" for variant in _variants(_read_table(name)))]
    return names


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """A bundled recipe such as "cifar10/resnet20" or "cifar10/resnet20:fast", or a TOML file, with key=value overrides.

    Raises:
        ConfigError: unknown recipe, variant or key (with close matches), or a value of the wrong type.
    """
    base, _, variant = name.partition(":")
    table = _read_table(base)
    variants = _variants(table)
    if variant and variant not in variants:
        raise ConfigError(unknown(f"variant of {base}", variant, variants))
    table = merge({k: v for k, v in table.items() if k not in variants}, variants.get(variant, {}))
    table["name"] = name
    for override in overrides:
        override_(table, override)
    return recipe_from_dict(table)


def departures(recipe: Recipe) -> list[str]:
    """The key=value overrides that make the bundled recipe of its name into this one; none where no bundled one has the name.

    Phases that this one lacks, and where the data lies, do not count.
    """
    if recipe.name not in list_recipes():
        return []
    bundled, own = (dict(_settings(r.to_dict(places=False))) for r in (load_recipe(recipe.name), recipe))
    return [f"{key}={value}" for key, value in own.items() if bundled.get(key) != value]


def _settings(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            items = value if isinstance(value, (list, tuple)) else [value]
            yield f"{prefix}{key}", ",".join(str(item).lower() if isinstance(item, bool) else str(item) for item in items)


def _variants(table: Mapping[str, Any]) -> dict[str, Any]:
    known = {f.name for f in fields(Recipe)}
    return {k: v for k, v in table.items() if k not in known and isinstance(v, dict)}


def _read_table(name: str) -> dict[str, Any]:
    path = resources.files("nbsnn.recipes").joinpath(f"{name}.toml")
    if name.endswith(".toml"):
        path = Path(name)
    if not path.is_file():
        raise ConfigError(unknown("recipe", name, [] if name.startswith("_") else list_recipes()))
    try:
        table = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML ({error})") from None
    parent = table.pop("extends", None)
    return merge(_read_table(parent), table) if parent else table
