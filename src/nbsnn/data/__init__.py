"""Data sets by name. Every one gives `Splits` of image sets, which `Batches` turns into (images, labels)."""

from collections.abc import Sequence
from pathlib import Path

import torch

from nbsnn.data.cifar10 import CLASSES, MEAN, STD, Progress, load_cifar10
from nbsnn.data.decode import square
from nbsnn.data.digits import load_digits
from nbsnn.data.imagenet import load_imagenet
from nbsnn.data.images import ImageSet, Splits
from nbsnn.data.photos import Loading
from nbsnn.data.sample import load_sample
from nbsnn.errors import ConfigError, unknown
from nbsnn.recipe import DataSpec

# name → training images held out by default
DATA_SETS = {"cifar10": 5000, "digits": 180, "imagenet": 0, "sample": 0}


def load_data(spec: DataSpec, *, size: int | None = None, progress: Progress | None = None) -> Splits:
    """The data set that a recipe names; photographs are cut to squares of `size` (224 unless given).

    Raises:
        ConfigError: unknown name. DataError: not there or damaged.
    """
    if spec.name == "cifar10":
        return load_cifar10(spec.root, validation=spec.validation, download=spec.download, progress=progress)
    if spec.name == "digits":
        return load_digits(validation=spec.validation)
    if spec.name == "imagenet":
        loading = Loading(spec.loader, spec.workers, spec.on_corrupt)
        return load_imagenet(spec.root, validation=spec.validation, size=size or 224, loading=loading)
    if spec.name == "sample":
        return load_sample()
    raise ConfigError(unknown("data set", spec.name, DATA_SETS))


def load_photographs(name: str, paths: Sequence[Path], *, size: int) -> ImageSet:
    """Image files as a data set's images: resized, with its normalisation and classes; labels are zeros.

    Raises:
        ConfigError: the data set has no colour photographs. DataError: a file is not an image.
    """
    if name not in ("cifar10", "sample"):
        raise ConfigError(f"the network was trained on {name!r}; photographs go to networks that were trained on cifar10")
    pixels = torch.cat([square(path, size=size).unsqueeze(0) for path in paths])
    return ImageSet(pixels, torch.zeros(len(pixels), dtype=torch.int64), MEAN, STD, CLASSES)
