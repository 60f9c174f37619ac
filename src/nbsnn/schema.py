"""What may stand in the header of a file: every field of every kind of file, with its type and range, in one place.

A header is JSON that anybody may have written. `parse` reads it strictly, and `check_header` compares it field by field with
the table of its kind, before anything is built or allocated. Headers pass the same check when they are written, so that
nothing is written that could not be read.

To add a field: put it into its table as `later(...)`, since files of earlier versions lack it, with a comment on what its
absence means. A range may become wider, never narrower than what earlier versions wrote. A reader that meets a field that
it does not know refuses the file and asks for a newer nbsnn; to change what a known field *means*, raise
`tensorfile.FORMAT_VERSION` instead.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from nbsnn.errors import ConfigError, shown
from nbsnn.quant.formats import read_weight_format
from nbsnn.recipe import MODEL_LIMITS, MOST_EPOCHS, MOST_SEED, recipe_from_dict

Header = dict[str, Any]
Check = Callable[[Any, str], None]  # of a value and the path of its field; raises Misfit

MOST_CHARACTERS = 2**23  # of a header; one of a thousand layers or a thousand epochs takes a tenth
MOST_DEPTH = 16  # of tables in tables
MOST_LAYERS = 2**14  # entries of a plan
MOST_NODES = 1024  # of an integer network
MOST_BRANCHES = 4096  # of a unit: a concatenation is a branch per source
MOST_SIDE = 2**14  # pixels, and channels of an image
MOST_IMAGE = 2**22  # values of the example image of a spiking network, 3×1182×1182
MOST_IMAGE_STEPS = 2**26  # of that image in all T steps, which its conversion looks at together
MOST_TIMESTEPS = 255  # activations have at most 8 bits
MOST_PADDING = 1024
_LONGEST_WHOLE = 40  # digits
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # control characters, halves of surrogates


class Misfit(ValueError):
    """A field that is not what its table says; the message names the field, its value and what is wanted."""


# ------------------------------------------------------------------------------------------------------------ the gate


def parse(text: str) -> Header:
    """The table that a header's JSON text holds.

    Raises:
        Misfit: no JSON, not a table, too long or too deep, a key given twice, NaN, infinity, or a number of too many digits.
    """
    if len(text) > MOST_CHARACTERS:
        raise Misfit(f"{len(text)} characters, where {MOST_CHARACTERS} are the most")
    try:
        header = json.loads(
            text, object_pairs_hook=_table_of, parse_constant=_no_number, parse_int=_parse_whole, parse_float=_parse_number
        )
    except RecursionError:
        raise Misfit(f"tables or lists in more than {MOST_DEPTH} others") from None
    except json.JSONDecodeError as error:
        raise Misfit(f"not JSON ({error})") from None
    if not isinstance(header, dict):
        raise Misfit(f"a {type(header).__name__} in the place of a table")
    return header


def check_header(header: Mapping[str, Any]) -> None:
    """Compare a header with the table of its kind: a network in any form, or a training state.

    Raises:
        Misfit: a field is missing, unknown, of another type or out of range; names it.
    """
    kind = TRAINING_STATE if "fingerprint" in header else INTEGER if header.get("form") == "integer" else CHECKPOINT
    kind(header, "")
    if kind is CHECKPOINT:
        _check_form(header)


def _check_form(header: Mapping[str, Any]) -> None:
    form, spiking = header["form"], header["spiking"]
    if (form == "spiking") != (spiking is not None):
        raise Misfit(f"form={form} does not go with spiking={shown(spiking)}")
    if (form == "float") != (not header["plan"]):
        raise Misfit(f"form={form} does not go with a plan of {len(header['plan'])} quantized layers")
    if spiking and math.prod(spiking["image_shape"]) * spiking["timesteps"] > MOST_IMAGE_STEPS:
        raise Misfit(f"spiking.image_shape={shown(spiking['image_shape'])} in T = {spiking['timesteps']} steps is too large")
    if header.get("packed") and form != "quantized":
        raise Misfit(f"form={form} does not go with packed=True")


def _table_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise Misfit(f"{shown(next(name for name in table if names.count(name) > 1))} is given twice")
    return table


def _no_number(text: str) -> NoReturn:
    raise Misfit(f"{text} is not a finite number")


def _parse_whole(text: str) -> int:
    if len(text) > _LONGEST_WHOLE:
        raise Misfit(f"a whole number of {len(text)} digits")
    return int(text)


def _parse_number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(shown(text))


# -------------------------------------------------------------------------------------------------------- kinds of value


class later(NamedTuple):
    """A field that files of earlier versions lack."""

    check: Check


def _refuse(value: Any, path: str, wanted: str) -> NoReturn:
    raise Misfit(f"{shown(path)}={shown(value)} must be {wanted}")


def whole(low: int, high: int) -> Check:
    """An integer from `low` to `high`; True and 1.0 are none."""

    def check(value: Any, path: str) -> None:
        if type(value) is not int or not low <= value <= high:
            _refuse(value, path, f"a whole number from {low} to {high}")

    return check


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number from `low` to `high`."""
    bounds = "" if math.isinf(low) and math.isinf(high) else f" from {low:g}" + ("" if math.isinf(high) else f" to {high:g}")

    def check(value: Any, path: str) -> None:
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            _refuse(value, path, f"a finite number{bounds}")

    return check


def choice(*allowed: str) -> Check:
    """One of some words."""

    def check(value: Any, path: str) -> None:
        if type(value) is not str or value not in allowed:
            _refuse(value, path, " or ".join(allowed))

    return check


def text(longest: int = 512) -> Check:
    """Characters on one line, which any terminal can print."""

    def check(value: Any, path: str) -> None:
        if type(value) is not str or len(value) > longest or _UNPRINTABLE.search(value):
            _refuse(value, path, f"text of up to {longest} characters on one line")

    return check


check_name = text(1024)  # of a tensor


def flag(value: Any, path: str) -> None:
    """True or False."""
    if type(value) is not bool:
        _refuse(value, path, "true or false")


def nullable(inner: Check) -> Check:
    """None, or what `inner` takes."""
    return lambda value, path: None if value is None else inner(value, path)


def list_of(inner: Check, least: int, most: int) -> Check:
    """A list of some length."""

    def check(value: Any, path: str) -> None:
        if type(value) is not list or not least <= len(value) <= most:
            _refuse(value, path, f"a list of {least} to {most}" if least < most else f"a list of {most}")
        for index, item in enumerate(value):
            inner(item, f"{path}.{index}")

    return check


def map_of(inner: Check, most: int) -> Check:
    """A table with free names."""
    name_check = text()

    def check(value: Any, path: str) -> None:
        if type(value) is not dict or len(value) > most:
            _refuse(value, path, f"a table of up to {most}")
        for name, item in value.items():
            name_check(name, f"a name in {path}")
            inner(item, f"{path}.{name}")

    return check


def table(fields: Mapping[str, Check | later]) -> Check:
    """A table with these fields, all of which must be there but for `later` ones."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, Mapping):
            _refuse(value, path, "a table")
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
        _refuse(value, path, "a number, text, a list or a table")


def recipe(value: Any, path: str) -> None:
    """What `Recipe.to_dict` gives; its own settings say what each may be."""
    try:
        recipe_from_dict(value)
    except ConfigError as error:
        raise Misfit(f"{path}: {error}") from None


def image_shape(value: Any, path: str) -> None:
    """The shape of one image, or of one row of features."""
    list_of(whole(1, MOST_SIDE), 1, 3)(value, path)
    if math.prod(value) > MOST_IMAGE:
        _refuse(value, path, f"of {MOST_IMAGE} values at most")


# ---------------------------------------------------------------------------------------------------- networks in any form

FORMAT = whole(1, 1)
HASH = text(64)
VERSIONS = map_of(text(100), 32)
METRICS = map_of(plain, 1000)
MODEL = table({"name": text(), **{key: whole(1, most) for key, most in MODEL_LIMITS.items()}})
_LAYER_FORMAT = table({
    "bits": whole(2, 8),
    "edge_range": later(nullable(choice("max_abs", "max"))),  # absent: none, an inner layer or an activation
    "fixed": later(flag),  # absent: not, the network is not a packed one
})  # fmt: skip


def layer_format(value: Any, path: str) -> None:
    """How a layer is quantized; an entry with `format` is what that weight format writes, but for fields that came later."""
    if not isinstance(value, Mapping) or "format" not in value:
        return _LAYER_FORMAT(value, path)
    plain(value, path)
    try:
        written = read_weight_format(value).header()
    except ConfigError as error:
        raise Misfit(f"{path}: {error}") from None
    if any(type(written.get(key)) is not type(item) or written[key] != item for key, item in value.items()):
        raise Misfit(f"{path}={shown(value)} must be what its format writes: {shown(written)}")


SPIKING = table({
    "neuron": choice("signed", "unsigned"),
    "schedule": text(),  # one of `nbsnn.spiking.schedules`, which `to_spiking` knows
    "image_shape": image_shape,
    "timesteps": whole(1, MOST_TIMESTEPS),
})  # fmt: skip
CHECKPOINT = table({
    "format": FORMAT,
    "form": choice("float", "quantized", "spiking"),
    "model": nullable(MODEL),  # null: the user's own network
    "plan": map_of(layer_format, MOST_LAYERS),
    "spiking": nullable(SPIKING),
    "recipe": nullable(recipe),
    "recipe_hash": nullable(text(64)),
    "seed": nullable(whole(0, MOST_SEED)),
    "metrics": METRICS,
    "versions": VERSIONS,
    "packed": later(flag),  # absent: the weights are not packed
    "content_hash": later(HASH),  # absent: an earlier version wrote it, and damage does not show
})  # fmt: skip

# --------------------------------------------------------------------------------------------------------- training states

_PERCENT = number(0, 100)
EPOCH = table({
    "epoch": whole(1, MOST_EPOCHS), "loss": number(), "train_top1": _PERCENT, "top1": _PERCENT, "lr": number(0),
    "seconds": number(0), "images_per_second": number(0),
})  # fmt: skip
HISTORY = list_of(EPOCH, 0, MOST_EPOCHS)
TRAINING_STATE = table({
    "format": FORMAT,
    "fingerprint": text(4096),
    "epoch": whole(0, MOST_EPOCHS),
    "step": whole(0, 2**40),
    "loss_sum": number(),
    "correct": whole(0, 2**50),
    "seen": whole(0, 2**50),
    "best": number(-1, 100),
    "history": HISTORY,
    "conditions": later(map_of(text(200), 32)),  # absent: precision, images and the like were not noted
    "extended": later(list_of(whole(1, MOST_EPOCHS), 0, 1000)),  # absent: the phase was not given more epochs after its end
    "momenta": later(whole(0, 2**16)),  # absent: their number was not noted
    "content_hash": later(HASH),  # absent: as in a checkpoint
})  # fmt: skip

# -------------------------------------------------------------------------------------------------------- integer networks


def _object(name: str, fields: Mapping[str, Check]) -> Check:
    return table({"class": choice(name), **fields})


def _node(value: Any, path: str) -> None:
    kinds = {"Unit": _UNIT, "SumPool": _SUM_POOL, "Flatten": _FLATTEN}
    name = value.get("class") if isinstance(value, Mapping) else None
    if not isinstance(name, str) or name not in kinds:
        _refuse(name, f"{path}.class", " or ".join(kinds))
    kinds[name](value, path)


_NAME = text()
_TENSOR = table({"tensor": text(1024)})
_SHAPE = list_of(whole(1, 2**31 - 1), 1, 3)
_BRANCH = _object("Branch", {
    "source": _NAME, "multiplier": _TENSOR, "weight": nullable(_TENSOR),
    "stride": list_of(whole(1, MOST_SIDE), 2, 2), "padding": list_of(whole(0, MOST_PADDING), 2, 2),
    "dilation": list_of(whole(1, MOST_SIDE), 2, 2), "groups": whole(1, 2**20), "shift": whole(0, 62),
})  # fmt: skip
_BRANCHES = list_of(_BRANCH, 1, MOST_BRANCHES)
_UNIT = _object("Unit", {
    "name": _NAME, "shape": _SHAPE, "branches": _BRANCHES, "bias": _TENSOR, "fraction_bits": whole(1, 28),
    "levels": whole(1, MOST_TIMESTEPS), "height": number(1e-30, 1e30), "retract": whole(-(2**62), -1),
    "bound": whole(1, 2**52), "wide": flag,
})  # fmt: skip
_SUM_POOL = _object("SumPool", {
    "name": _NAME, "source": _NAME, "kernel": list_of(whole(1, MOST_SIDE), 2, 2), "stride": list_of(whole(1, MOST_SIDE), 2, 2),
    "padding": list_of(whole(0, MOST_PADDING), 2, 2), "shape": _SHAPE,
})  # fmt: skip
_FLATTEN = _object("Flatten", {"name": _NAME, "source": _NAME, "shape": _SHAPE})
_PIXELS = _object("Pixels", {
    "shape": list_of(whole(1, MOST_SIDE), 1, 3), "fraction_bits": whole(0, 30), "low": whole(1 - 2**30, 0),
    "high": whole(0, 2**30 - 1), "table": nullable(_TENSOR),
})  # fmt: skip
PROGRAM = _object("Program", {
    "timesteps": whole(1, MOST_TIMESTEPS),
    "pixels": _PIXELS,
    "nodes": list_of(_node, 1, MOST_NODES),
    "head": _object("Head", {"shape": _SHAPE, "branches": _BRANCHES, "bias": _TENSOR}),
    "notes": list_of(text(1000), 0, MOST_LAYERS),
    "origin": METRICS,
})  # fmt: skip
INTEGER = table({
    "format": FORMAT,
    "form": choice("integer"),
    "program": PROGRAM,
    "model": nullable(MODEL),
    "recipe": nullable(recipe),
    "versions": VERSIONS,
    "content_hash": HASH,
})  # fmt: skip
