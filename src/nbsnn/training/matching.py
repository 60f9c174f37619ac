"""Do images fit a network, and its classes those that it was trained with? Checks before training starts."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from nbsnn.checkpoint import recipe_of
from nbsnn.data.files import printable
from nbsnn.data.images import LabelledImages
from nbsnn.data.photos import PhotoSet
from nbsnn.dry_run import check
from nbsnn.errors import ConfigError, NbsnnError, shown
from nbsnn.inputs import in_one_line, to_network
from nbsnn.models.plain import PLAIN_NETS
from nbsnn.quant.plans import read_plan
from nbsnn.recipe import FLOAT_BITS, ModelSpec, Recipe
from nbsnn.structure import pick_output
from nbsnn.surgery import evaluation_mode
from nbsnn.tensorfile import read_header
from nbsnn.training.folder import LAST_FILE

logger = logging.getLogger(__name__)


def check_fit(spec: ModelSpec, images: LabelledImages, name: str) -> None:
    """Raise an error for a data set whose images or classes do not fit a network; warn if labels may differ.

    Raises:
        ConfigError: other channels, another size if that matters, or more classes than the network has.
    """
    channels, height, width = images.shape
    remedy = "choose other data"
    if channels != spec.in_channels:
        raise ConfigError(f"the network takes {spec.in_channels} channels, but {name} has {channels}; {remedy}")
    if spec.name in PLAIN_NETS and (height, width) != (spec.image_size, spec.image_size):
        raise ConfigError(f"the network takes images of {spec.image_size} pixels, but {name} has {height}×{width}; {remedy}")
    if len(images.classes) > spec.num_classes:
        raise ConfigError(
            f"the network has {spec.num_classes} classes, but {name} has {len(images.classes)}; train one with "
            f"model.num_classes={len(images.classes)}, or {remedy}"
        )
    if len(images.classes) < spec.num_classes:
        logger.warning("%s has %d classes, the network %d: labels are indices of the former", name, len(images.classes),
                       spec.num_classes)  # fmt: skip


def check_own_fit(network: nn.Module, images: LabelledImages, name: str, *, output: str | int | None = None) -> None:
    """Raise an error for an own network that does not make a row of class scores of the images; try one of them.

    Args:
        output: key or index of the scores in a result of several tensors.
    Raises:
        ConfigError: says what the network takes or gives instead.
    """
    image = images.normalized(images.pixels(slice(0, 1)))
    try:
        with evaluation_mode(network), torch.no_grad(), in_one_line(image):
            given = network(to_network(image, network))
            scores = given if output is None else pick_output(given, output)
    except NbsnnError as error:
        if output is not None and str(error).startswith("output="):
            raise
        raise ConfigError(f"{error} (of {name}); set data.image_size and data.channels to what it takes") from None
    except Exception as error:  # of the user's forward
        reason = shown(f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise ConfigError(f"the network does not run on one image of {name}, {list(image.shape)}: {reason}") from None
    if not isinstance(scores, Tensor) or scores.dim() != 2:
        found = f"{list(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        choice = (
            "" if isinstance(given, Tensor) else ", or choose them with output=, which quantize, convert, lower and eval take"
        )
        raise ConfigError(
            f"the network gives {found} for one image of {name}; return class scores, a tensor [B, classes]{choice}"
        )
    if scores.shape[1] < len(images.classes):
        raise ConfigError(
            f"the network tells {scores.shape[1]} classes apart, but {name} has {len(images.classes)}; give it as many outputs"
        )


def check_convertible(network: nn.Module, images: LabelledImages, recipe: Recipe) -> None:
    """Raise an error for an own network that could not be quantized, converted and lowered after its training.

    Raises:
        ConfigError: names the first place, its remedy, and how many more there are.
    """
    quantized = [int(bits) for bits in recipe.phase if int(bits) != FLOAT_BITS]
    if not quantized or read_plan(network):
        return
    image = to_network(images.normalized(images.pixels(slice(0, 1))), network)
    refused = [found for found in check(network, image, spec=recipe.spec(quantized[0])) if found.status == "refused"]
    if refused:
        more = f" (and {len(refused) - 1} more, which nbsnn.check lists)" if len(refused) > 1 else ""
        raise ConfigError(f"the network cannot be converted after training: {refused[0]}{more}")


def with_classes(recipe: Recipe, images: LabelledImages, folders: Iterable[Path]) -> Recipe:
    """The recipe with the names of its classes, if they are read from folders, and computed mean and std, for checkpoints.

    Raises:
        ConfigError: a checkpoint in one of the folders was trained with other classes.
    """
    if not isinstance(images, PhotoSet):
        return recipe
    for last in (folder / LAST_FILE for folder in folders):
        header = read_header(last)  # None if damaged: the phase's training state may restore it
        check_same_classes(recipe_of(header) if header else None, images, str(last))
    data = replace(recipe.data, classes=images.classes)
    return replace(recipe, data=replace(data, mean=images.mean, std=images.std) if data.normalization == "computed" else data)


def check_same_classes(trained: Recipe | None, images: LabelledImages, source: str) -> None:
    """Raise an error for images whose classes differ, in name or order, from those in a checkpoint's recipe.

    Raises:
        ConfigError: names the classes that only one of the two has.
    """
    then = trained.data if trained else None
    if then and then.mean and (then.mean, then.std) != (images.mean, images.std):
        kept = " ".join(
            f"data.{name}={','.join(map(str, values))}" for name, values in (("mean", then.mean), ("std", then.std))
        )
        raise ConfigError(f"{source} was trained with another mean and std, of other images; restore those, or set {kept}")
    names = then.classes if then else ()
    if not names or names == images.classes:
        return
    lost, new = ([name for name in a if name not in b][:5] for a, b in ((names, images.classes), (images.classes, names)))
    found = [f"{which} {', '.join(map(printable, some))}" for which, some in (("without", lost), ("with", new)) if some]
    raise ConfigError(
        f"{source} was trained with {len(names)} classes, but the data are {' and '.join(found) or 'in another order'}; "
        "restore the folders, or train in another folder"
    )
