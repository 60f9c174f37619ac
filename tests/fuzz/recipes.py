"""Random recipes: TOML files and key=value settings."""

import random
from pathlib import Path
from typing import Any

from fuzz import values
from fuzz.corpus import Corpus
from fuzz.oracle import Failure, refusal

from nbsnn.recipe import recipe_from_dict
from nbsnn.recipes import list_recipes, load_recipe

KEYS = (
    "seed", "name", "data.batch_size", "data.root", "data.validation", "optim.milestones", "optim.momentum", "phase.2.epochs",
    "phase.all.lr", "phase.²", "phase.02.epochs", "model.name", "model.image_size", "quant.weights", "x.y", "a..b", ".", "",
)  # fmt: skip
ODD = (
    b"[[", b"]", b"=", b'"""', b"\xff", b"\r", b"[" * 5000, b"0x" + b"f" * 5000, b"9" * 5000, b"nan", b"\x00", b"[a.b.c]\n",
)  # fmt: skip


def random_recipe(r: random.Random, corpus: Corpus, folder: Path) -> str:
    """A file, or a bundled recipe, with settings on top: what is accepted has a hash, and comes back from its own table."""
    name = r.choice([*list_recipes(), "own.toml", "own.toml", "own.toml", r.choice(values.WORDS)])
    if name == "own.toml":
        path = folder / "own.toml"
        path.write_bytes(random_toml(r))
        name = str(path)
    settings = [random_setting(r) for _ in range(r.randrange(3))]
    recipe, said = refusal(lambda: load_recipe(name, settings))
    if said is not None:
        return "refused"
    if recipe_from_dict(recipe.to_dict()).hash != recipe.hash:
        raise Failure(f"{name} {settings}: another hash after a round trip")
    return "accepted"


def random_toml(r: random.Random) -> bytes:
    """A recipe, edited as a table or as text."""
    table: dict[str, Any] = load_recipe("digits/resnet20").to_dict()
    for _ in range(r.randrange(4)):
        values.edit_(r, table)
    text = _toml(table)
    if r.random() < 0.2:
        text = f"extends = {_value(r.choice(['digits/_base', 'own.toml', 'digits/resnet20', *values.WORDS]))}\n" + text
    data = bytearray(text.encode(errors="surrogatepass"))
    for _ in range(r.choice([0, 0, 0, 1, 3])):
        at = r.randrange(len(data) + 1)
        data[at:at] = r.choice([*ODD, r.randbytes(2)])
    return bytes(data)


def random_setting(r: random.Random) -> str:
    """A key=value, of which half is sensible."""
    key = r.choice([*KEYS, *values.WORDS])
    value = r.choice([*map(str, values.NUMBERS), *values.WORDS, "0.5,0.75", "true"])
    return f"{key}{r.choice(['=', '=', '=', '=', '==', ' = ', ''])}{value}"


def _toml(table: dict[str, Any], prefix: str = "") -> str:
    plain = [f"{_key(k)} = {_value(v)}" for k, v in table.items() if not isinstance(v, dict)]
    inner = [f"[{prefix}{_key(k)}]\n{_toml(v, f'{prefix}{_key(k)}.')}" for k, v in table.items() if isinstance(v, dict)]
    return "\n".join([*plain, *inner]) + "\n"


def _key(key: str) -> str:
    return key if key.isidentifier() or key.isdigit() else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04x}" for c in str(value))
    return f'"{escaped}"'
