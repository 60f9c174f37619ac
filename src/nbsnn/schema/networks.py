"""The header of a checkpoint: a float, quantized or spiking network."""

import math
from collections.abc import Mapping
from typing import Any

from nbsnn.errors import ConfigError, shown
from nbsnn.quant.formats import read_weight_format
from nbsnn.recipe import MOST_SEED
from nbsnn.schema.common import FORMAT, HASH, METRICS, MODEL, MOST_LAYERS, MOST_SIDE, MOST_TIMESTEPS, VERSIONS, recipe
from nbsnn.schema.kinds import Misfit, choice, flag, later, list_of, map_of, nullable, plain, refuse, table, text, whole

MOST_IMAGE = 2**22  # values of the example image of a spiking network, 3×1182×1182
MOST_IMAGE_STEPS = 2**26  # of that image in all T steps, which its conversion looks at together

_LAYER_FORMAT = table({
    "bits": whole(1, 8),
    "edge_range": later(nullable(choice("max_abs", "max"))),  # absent: none, an inner layer or an activation
    "fixed": later(flag),  # absent: not, the network is not a packed one
})  # fmt: skip


def layer_format(value: Any, path: str) -> None:
    """How a layer is quantized; an entry with `format` is written by that weight format, except for later fields."""
    if not isinstance(value, Mapping) or "format" not in value:
        return _LAYER_FORMAT(value, path)
    plain(value, path)
    try:
        written = read_weight_format(value).header()
    except ConfigError as error:
        raise Misfit(f"{path}: {error}") from None
    if any(type(written.get(key)) is not type(item) or written[key] != item for key, item in value.items()):
        raise Misfit(f"{path}={shown(value)} must be what its format writes: {shown(written)}")


def image_shape(value: Any, path: str) -> None:
    """The shape of one image, or of one row of features."""
    list_of(whole(1, MOST_SIDE), 1, 3)(value, path)
    if math.prod(value) > MOST_IMAGE:
        refuse(value, path, f"of {MOST_IMAGE} values at most")


SPIKING = table({
    "neuron": choice("signed", "unsigned"),
    "schedule": text(),  # one of `nbsnn.spiking.schedules`, which `to_spiking` knows
    "image_shape": image_shape,
    "timesteps": whole(1, MOST_TIMESTEPS),
})  # fmt: skip
PREPARED = table({
    "image_shape": image_shape,  # of the example
    "keep": list_of(text(), 0, MOST_LAYERS),  # patterns of layers that were left as they are
    "activations": flag,  # false: weights alone were rewritten
})  # fmt: skip
CHECKPOINT = table({
    "format": FORMAT,
    "form": choice("float", "quantized", "spiking"),
    "model": nullable(MODEL),  # null: the user's own network
    "plan": map_of(layer_format, MOST_LAYERS),
    "prepared": later(PREPARED),  # absent: the network is as its own code says
    "spiking": nullable(SPIKING),
    "recipe": nullable(recipe),
    "recipe_hash": nullable(text(64)),
    "seed": nullable(whole(0, MOST_SEED)),
    "metrics": METRICS,
    "versions": VERSIONS,
    "packed": later(flag),  # absent: the weights are not packed
    "content_hash": later(HASH),  # absent: written by an earlier version, damage is not detected
})  # fmt: skip


def check_form(header: Mapping[str, Any]) -> None:
    """Compare the fields of a checkpoint with each other."""
    form, spiking = header["form"], header["spiking"]
    if (form == "spiking") != (spiking is not None):
        raise Misfit(f"form={form} does not go with spiking={shown(spiking)}")
    if (form == "float") != (not header["plan"]):
        raise Misfit(f"form={form} does not go with a plan of {len(header['plan'])} quantized layers")
    if spiking and math.prod(spiking["image_shape"]) * spiking["timesteps"] > MOST_IMAGE_STEPS:
        raise Misfit(f"spiking.image_shape={shown(spiking['image_shape'])} in T = {spiking['timesteps']} steps is too large")
    if header.get("packed") and form != "quantized":
        raise Misfit(f"form={form} does not go with packed=True")
