"""Float networks by name."""

import re

from torch import nn

from nbsnn.arguments import checked_arguments
from nbsnn.errors import ConfigError, unknown
from nbsnn.models.plain import PLAIN_NETS, build_plain
from nbsnn.models.resnet import RESIDUAL_NETS, build_resnet
from nbsnn.recipe import ModelSpec

_DEFAULT_CLASSES = {"cifar10": 10, "imagenet": 1000}
_DEFAULT_SIZE = {"cifar10": 32, "imagenet": 224}


def list_models() -> list[str]:
    """All names for `build_model`."""
    return sorted([*PLAIN_NETS, *RESIDUAL_NETS])


def canonical_name(name: str, *, data: str = "cifar10") -> str:
    """The full name of a published short one: "alex" → "cifar10/alexnet", "res20" → "cifar10/resnet20"."""
    if "/" not in name:
        short = {"alex": "alexnet"}.get(name, re.sub(r"^res(?=\d)", "resnet", name))
        name = f"{data}/{short}"
    if name not in list_models():
        raise ConfigError(unknown("model", name, list_models()))
    return name


@checked_arguments
def build_model(name: str, *, num_classes: int | None = None, in_channels: int = 3, image_size: int | None = None) -> nn.Module:
    """A float network with random weights.

    Args:
        name: one of `list_models()`, or a published short name.
        num_classes: 10 for cifar10/…, 1000 for imagenet/… unless given.
        in_channels: channels of the image.
        image_size: height and width; 32 or 224 unless given. Residual networks take any size at run time.
    Raises:
        ConfigError: unknown name (with close matches), or an image too small for the strides.
    """
    name = canonical_name(name)
    group = name.partition("/")[0]
    classes = _DEFAULT_CLASSES[group] if num_classes is None else num_classes
    spec = ModelSpec(name, classes, in_channels, _DEFAULT_SIZE[group] if image_size is None else image_size)
    build = build_plain if name in PLAIN_NETS else build_resnet
    net = build(name, num_classes=spec.num_classes, in_channels=spec.in_channels, image_size=spec.image_size)
    net.model_spec = spec  # type: ignore[assignment]  # a checkpoint rebuilds the net from it
    return net
