"""Data sets by name: files in `nbsnn.data.sets`, registered ones, and those of other packages."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from pkgutil import iter_modules
from typing import Protocol

from nbsnn.data import sets
from nbsnn.data.download import DownloadProgress
from nbsnn.data.images import ImageSet, Splits
from nbsnn.errors import ConfigError, unknown
from nbsnn.naming import add_named
from nbsnn.recipe import DataSpec

GROUP = "nbsnn.data_sets"  # of the entry points of other packages


class Loader(Protocol):
    def __call__(self, spec: DataSpec, *, size: int, progress: DownloadProgress | None) -> Splits:
        """Load the images for a recipe; photographs are cropped to squares of `size`. `progress` is for a download."""


class PhotographReader(Protocol):
    def __call__(self, spec: DataSpec, paths: Sequence[Path], *, size: int, classes: int) -> ImageSet:
        """Image files as images of the set, in its size and normalization, with labels of zeros."""


@dataclass(frozen=True)
class DataSet:
    """A data set.

    Attributes:
        load: the function that loads it.
        validation: default number of training images held out.
        trains: whether it has training images; otherwise every split holds the same test images.
        photographs: loads image files in its format, for `nbsnn classify`; None if it does not consist of photographs.
        takes_classes: whether its classes are read from folders and can be given in `DataSpec.classes`.
        normalization: mean and std of each channel, if they are the same whatever the files hold.
    """

    load: Loader
    validation: int = 0
    trains: bool = True
    photographs: PhotographReader | None = None
    takes_classes: bool = False
    normalization: tuple[Sequence[float], Sequence[float]] | None = None


_registered: dict[str, DataSet] = {}


def register(name: str, data_set: DataSet) -> None:
    """Register a data set under a name for recipes and `load_data` in this process.

    To add one to every process, including the command line, declare an entry point of the group "nbsnn.data_sets" in a package:
    the name, and the location of the `DataSet`.

    Raises:
        ConfigError: there is another data set of this name.
    """
    add_named(_registered, "data set", name, data_set, taken=list_data_sets())


def list_data_sets() -> list[str]:
    """The names of all data sets."""
    return sorted({*_bundled(), *_registered, *(point.name for point in metadata.entry_points(group=GROUP))})


def data_set(name: str) -> DataSet:
    """The data set of this name.

    Raises:
        ConfigError: unknown name.
    """
    if name in _bundled():
        found = import_module(f"{sets.__name__}.{name}").DATA_SET
    elif name in _registered:
        found = _registered[name]
    else:
        points = [point for point in metadata.entry_points(group=GROUP) if point.name == name]
        if not points:
            raise ConfigError(unknown("data set", name, list_data_sets()))
        try:
            found = points[0].load()
        except Exception as error:  # importing another package can raise any exception
            reason = " ".join(str(error).split())
            raise ConfigError(f"data set {name!r}: {points[0].value} cannot be loaded ({reason}); fix that package") from None
    if not isinstance(found, DataSet):
        raise ConfigError(f"data set {name!r}: {GROUP} names a {type(found).__name__}, not a nbsnn.data.DataSet")
    return found


def choices(fits: Callable[[DataSet], object] = lambda _: True) -> str:
    """The names of data sets for a message, "cifar10, digits or imagenet"."""
    names = []
    for name in list_data_sets():
        with suppress(ConfigError):  # a data set of another package that cannot be loaded
            names += [name] if fits(data_set(name)) else []
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _bundled() -> list[str]:
    return [module.name for module in iter_modules(sets.__path__)]
