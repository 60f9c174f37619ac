"""Data sets by name. Every one gives `Splits` of image sets, which `Batches` turns into (images, labels)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nbsnn.data import imagenet
from nbsnn.data.cifar10 import CLASSES, MEAN, STD, Progress, load_cifar10
from nbsnn.data.decode import center_crop, square
from nbsnn.data.digits import load_digits
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
        return _padded(load_cifar10(spec.root, validation=spec.validation, download=spec.download, progress=progress), spec)
    if spec.name == "digits":
        return _padded(load_digits(validation=spec.validation), spec)
    if spec.padding != "black" and spec.name in DATA_SETS:
        raise ConfigError(f"data.padding={spec.padding}: images of {spec.name} are not padded; leave it out")
    if spec.name == "imagenet":
        loading = Loading(spec.loader, spec.workers, spec.on_corrupt)
        return imagenet.load_imagenet(spec.root, validation=spec.validation, size=size or 224, loading=loading)
    if spec.name == "sample":
        return load_sample()
    raise ConfigError(unknown("data set", spec.name, DATA_SETS))


def _padded(splits: Splits, spec: DataSpec) -> Splits:
    """With what the recipe wants crops of training images to show beyond the border."""
    assert isinstance(splits.train, ImageSet)
    return replace(splits, train=replace(splits.train, padding=spec.padding))


def load_photographs(spec: DataSpec, paths: Sequence[Path], *, size: int, classes: int) -> ImageSet:
    """Image files as images of a data set: cut and normalised as its own, with its names of classes; labels are zeros.

    Args:
        spec: the data set; ImageNet's class names are the folders' at its root, numbers where there are none.
        paths: the files.
        size: of the square images.
        classes: how many the network tells apart.
    Raises:
        ConfigError: the data set has no colour photographs. DataError: a file is not an image.
    """
    labels = torch.zeros(len(paths), dtype=torch.int64)
    if spec.name in ("cifar10", "sample"):
        return ImageSet(torch.stack([square(path, size=size) for path in paths]), labels, MEAN, STD, CLASSES)
    if spec.name == "imagenet":
        pixels = torch.stack([center_crop(str(path), size=size) for path in paths])
        return ImageSet(pixels, labels, imagenet.MEAN, imagenet.STD, imagenet.class_names(Path(spec.root), classes))
    known = "cifar10 or imagenet"
    raise ConfigError(f"the network was trained on {spec.name!r}; photographs go to networks that were trained on {known}")
