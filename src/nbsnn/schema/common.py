"""Fields that headers of several kinds of file have."""

from typing import Any

from nbsnn.errors import ConfigError
from nbsnn.recipe import MODEL_LIMITS, recipe_from_dict
from nbsnn.schema.kinds import Misfit, map_of, plain, table, text, whole

MOST_LAYERS = 2**14  # entries of a plan, notes of an integer network
MOST_SIDE = 2**14  # pixels, and channels of an image
MOST_TIMESTEPS = 255  # activations have at most 8 bits

FORMAT = whole(1, 1)
HASH = text(64)
VERSIONS = map_of(text(100), 32)
METRICS = map_of(plain, 1000)
_REGISTERED = table({"name": text(), **{key: whole(1, most) for key, most in MODEL_LIMITS.items()}})
_OWN = table({"name": text(), "args": map_of(plain, 1000)})


def MODEL(value: Any, path: str) -> None:
    """A registered network, or the function of an own one, "package.module:function", with its arguments."""
    own = isinstance(value, dict) and ":" in str(value.get("name"))
    (_OWN if own else _REGISTERED)(value, path)


def recipe(value: Any, path: str) -> None:
    """The result of `Recipe.to_dict`; the recipe checks its settings."""
    try:
        recipe_from_dict(value)
    except ConfigError as error:
        raise Misfit(f"{path}: {error}") from None
