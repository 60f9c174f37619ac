"""300 of CIFAR-10's test images, included in the package to try bundled networks.

They are JPEG files (quality 75) in one archive, named `<number>_<class>.jpg`, with a notice of their source.
"""

import io
import zipfile
from importlib import resources

import torch

from nbsnn.data.decode import whole_picture
from nbsnn.data.download import DownloadProgress
from nbsnn.data.images import ImageSet, Splits
from nbsnn.data.registry import DataSet
from nbsnn.data.sets.cifar10 import CLASSES, MEAN, STD, photographs
from nbsnn.recipe import DataSpec


def load_sample() -> Splits:
    """Images [300, 3, 32, 32], 30 of each class. They are test images: every split holds the same ones."""
    with resources.files(__package__).joinpath("cifar10_sample.zip").open("rb") as file, zipfile.ZipFile(file) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        images = torch.stack([whole_picture(io.BytesIO(archive.read(name)), name) for name in names])
    labels = torch.tensor([CLASSES.index(name.removesuffix(".jpg").partition("_")[2]) for name in names])
    sample = ImageSet(images, labels, MEAN, STD, CLASSES)
    return Splits(sample, sample, sample)


def _load(spec: DataSpec, *, size: int, progress: DownloadProgress | None) -> Splits:
    return load_sample()


DATA_SET = DataSet(_load, trains=False, photographs=photographs, normalization=(MEAN, STD))
