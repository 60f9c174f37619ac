"""Data sets by name. Each returns `Splits` of image sets, from which `Batches` makes (images, labels)."""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nbsnn.data.download import DownloadProgress
from nbsnn.data.images import ImageSet, Splits
from nbsnn.data.registry import DataSet, choices, data_set, list_data_sets, register
from nbsnn.errors import ConfigError
from nbsnn.recipe import DataSpec
from nbsnn.settings import typed

__all__ = ["DataSet", "choices", "data_set", "list_data_sets", "load_data", "load_photographs", "register"]

_SIZE = 224  # of photographs, as published for ImageNet
_OF_FILES = ("image_size", "channels", "center", "crop_area", "normalization", "split")  # settings of image files
_PLAIN = DataSpec()


def load_data(
    data: DataSpec | str, *, size: int | None = None, progress: DownloadProgress | None = None, **settings: Any
) -> Splits:
    """A data set as training, validation and test images: `load_data("cifar10", root="data")`.

    Args:
        data: its name, one of `nbsnn.data.list_data_sets()`, or the `DataSpec` of a recipe.
        size: photographs are cropped to squares of this many pixels, 224 unless given.
        progress: called with the bytes of a download, so far and in total.
        settings: fields of `DataSpec`, such as root, download, validation (training images held out; the set's default unless
            given), classes, on_corrupt, channels, normalization, split.
    Raises:
        ConfigError: unknown name or setting. DataError: the data is missing or damaged.
    """
    spec = data_spec(data, **settings)
    found = data_set(spec.name)
    if spec.classes and not found.takes_classes:
        raise ConfigError(f"data.classes: the classes of {spec.name} are not read from folders; leave it out")
    for name in _OF_FILES if not found.takes_classes else ():
        if getattr(spec, name) != getattr(_PLAIN, name):
            raise ConfigError(f"data.{name}={getattr(spec, name)}: images of {spec.name} are not read from files; leave it out")
    if spec.padding != "black" and not found.trains:
        raise _no_padding(spec)
    splits = found.load(spec, size=spec.image_size or size or _SIZE, progress=progress)
    if not isinstance(splits, Splits):
        raise ConfigError(f"data set {spec.name!r}: its load gives a {type(splits).__name__}, not nbsnn.Splits")
    if not isinstance(splits.train, ImageSet):
        if spec.padding != "black":
            raise _no_padding(spec)
        return splits
    if spec.padding == "black" and spec.flip:
        return splits
    return replace(splits, train=replace(splits.train, padding=spec.padding, flip=spec.flip))


def _no_padding(spec: DataSpec) -> ConfigError:
    return ConfigError(f"data.padding={spec.padding}: images of {spec.name} are not padded; leave it out")


def data_spec(data: DataSpec | str, **settings: Any) -> DataSpec:
    """The settings of a data set, from its name or another `DataSpec`, with changes.

    Raises:
        ConfigError: unknown name or setting, or an invalid value.
    """
    if isinstance(data, DataSpec):
        table = asdict(data)
    elif isinstance(data, str):
        table = {"name": data, "validation": data_set(data).validation}
    else:
        raise ConfigError(f"data is a {type(data).__name__}; give a name, {choices()}, or a DataSpec")
    if isinstance(settings.get("root"), os.PathLike):
        settings["root"] = os.fspath(settings["root"])
    spec: DataSpec = typed(table | settings, DataSpec, "data")
    return spec


def load_photographs(spec: DataSpec, paths: Sequence[Path], *, size: int, classes: int) -> ImageSet:
    """Image files as images of a data set: cropped and normalized in the same way, with its class names; labels are zeros.

    Args:
        spec: the data set; the class names of a tree of photographs are `spec.classes`, or else the folder names at its root,
            or numbers if there are no folders.
        paths: the files.
        size: of the square images.
        classes: number of classes of the network.
    Raises:
        ConfigError: the data set has no color photographs. DataError: a file is not an image.
    """
    read = data_set(spec.name).photographs
    if read is None:
        known = choices(lambda data: data.photographs and data.trains)
        raise ConfigError(f"the network was trained on {spec.name!r}; photographs go to networks that were trained on {known}")
    return read(spec, paths, size=size, classes=classes)
