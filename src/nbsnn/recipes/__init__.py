"""The bundled recipes, one TOML file per (data set, network), and how any recipe is read and overridden."""

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from nbsnn.aliases import current_key, current_names
from nbsnn.arguments import checked_arguments
from nbsnn.errors import ConfigError, shown, unknown
from nbsnn.recipe import Recipe, recipe_from_dict
from nbsnn.settings import merge, override_

_SUFFIX = ".toml"
_LARGEST = 1_000_000  # bytes; a recipe has about a thousand


def list_recipes() -> list[str]:
    """Names that `load_recipe` knows, variants (`name:variant`) included."""
    names = []
    for name, path in _bundled().items():
        if not path.name.startswith("_"):
            names += [name, *(f"{name}:{variant}" for variant in _variants(_read_table(path, name)))]
    return names


@checked_arguments
def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """A bundled recipe such as "cifar10/resnet20" or "cifar10/resnet20:fast", or a TOML file, with key=value overrides.

    Raises:
        ConfigError: unknown recipe, variant or key (with close matches), a value of the wrong type, or a file that is not a
            recipe.
    """
    base, colon, variant = name.rpartition(":") if f"{_SUFFIX}:" in name else name.partition(":")
    if name.endswith(_SUFFIX):  # a file, also with a colon in its name
        base, colon, variant = name, "", ""
    try:
        table = _read_table(_find(base), base)
        variants = _variants(table)
        if colon and variant not in variants:
            raise ConfigError(unknown(f"variant of {shown(base)}", variant, variants))
        table = merge({k: v for k, v in table.items() if k not in variants}, variants.get(variant, {}))
        table["name"] = name
        for override in overrides:
            override_(table, _current(override))
        return _placed(recipe_from_dict(table), base)
    except RecursionError:
        raise ConfigError(f"{shown(name)}: tables are nested too deeply; a recipe has two levels") from None


def _placed(recipe: Recipe, base: str) -> Recipe:
    """The recipe of a file, with data that lie beside it, unless they lie in the working directory."""
    beside = Path(base).parent / recipe.data.root
    if not base.endswith(_SUFFIX) or Path(recipe.data.root).exists() or not beside.exists():
        return recipe
    return replace(recipe, data=replace(recipe.data, root=str(beside)))


def _current(override: str) -> str:
    """A key=value override with the current name of its setting."""
    key, equals, value = override.partition("=")
    return current_key(key.strip()) + equals + value


def _variants(table: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of the recipe's own tables, such as [fast.optim]; others are misspelled, and raise an error later."""
    known = {f.name for f in fields(Recipe)}
    own = known - {"name"}
    return {k: v for k, v in table.items() if k not in known and isinstance(v, dict) and v.keys() <= own}


def _bundled() -> dict[str, Path]:
    """Name → file of all bundled recipes; a name whose last part begins with _ is a base of others."""
    root = Path(str(resources.files("nbsnn.recipes")))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.glob(f"*/*{_SUFFIX}"))}


def _find(name: str, *, beside: Path | None = None) -> Path:
    """The file of a bundled recipe, or one by its path: beside the file that extends it, or from the working directory."""
    bundled = _bundled()
    if name in bundled and (beside or not bundled[name].name.startswith("_")):
        return bundled[name]
    if not name.endswith(_SUFFIX):
        raise ConfigError(unknown("recipe", name, bundled if beside else list_recipes()))
    near = beside.parent / name if beside else Path(name)
    try:
        path = near if near.exists() else Path(name)
        exists, regular = path.exists(), path.is_file()
        size = path.stat().st_size if regular else 0
    except (OSError, ValueError) as error:  # a name that is too long or invalid
        raise ConfigError(f"{shown(name)}: {getattr(error, 'strerror', None) or error}") from None
    if not exists:
        raise ConfigError(f"{shown(name)}: no such file; for the bundled recipes see nbsnn recipes")
    if not regular:  # reading a pipe would block
        raise ConfigError(f"{shown(name)}: a folder or a device, not a TOML file")
    if size > _LARGEST:
        raise ConfigError(f"{shown(name)}: {size:,} bytes are no recipe")
    return path


def _read_table(path: Path, name: str, trail: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's table merged with those that it extends; `trail` holds the files that were followed."""
    if path.resolve() in trail:
        raise ConfigError(f'{shown(name)}: extends itself; take one "extends" out')
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigError(f"{shown(name)}: not UTF-8 text; save the file as UTF-8") from None
    except ValueError as error:  # a TOMLDecodeError, or a number of thousands of digits
        raise ConfigError(f"{shown(name)}: not valid TOML ({error})") from None
    except OSError as error:
        raise ConfigError(f"{shown(name)}: {error.strerror}") from None
    table = current_names(table)
    parent = table.pop("extends", None)
    if parent is None:
        return table
    if not isinstance(parent, str):
        raise ConfigError(f"{shown(name)}: extends={shown(parent)}: must be the name of a recipe, or a TOML file")
    below = _read_table(_find(parent, beside=path), parent, (*trail, path.resolve()))
    return merge(below, table)
