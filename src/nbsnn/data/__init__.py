"""Data sets by name. Every one gives `Splits` of `ImageSet`s, which `Batches` turns into (images, labels)."""

from nbsnn.data.cifar10 import Progress, load_cifar10
from nbsnn.data.digits import load_digits
from nbsnn.data.images import Splits
from nbsnn.data.sample import load_sample
from nbsnn.errors import ConfigError, unknown
from nbsnn.recipe import DataSpec

# name → training images held out by default
DATA_SETS = {"cifar10": 5000, "digits": 180, "sample": 0}


def load_data(spec: DataSpec, *, progress: Progress | None = None) -> Splits:
    """The data set that a recipe names.

    Raises:
        ConfigError: unknown name. DataError: not there or damaged.
    """
    if spec.name == "cifar10":
        return load_cifar10(spec.root, validation=spec.validation, download=spec.download, progress=progress)
    if spec.name == "digits":
        return load_digits(validation=spec.validation)
    if spec.name == "sample":
        return load_sample()
    raise ConfigError(unknown("data set", spec.name, DATA_SETS))
