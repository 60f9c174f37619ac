"""300 bundled test images of CIFAR-10, as JPEG, and any other photograph: what a network can be tried on without a download."""

import io
import zipfile
from importlib import resources
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from nbsnn.data.cifar10 import CLASSES, MEAN, STD
from nbsnn.data.images import ImageSet, Splits
from nbsnn.errors import DataError, MissingDependencyError


def load_sample() -> Splits:
    """Images [300, 3, 32, 32], 30 of each class. They are test images: every split holds the same ones."""
    with resources.files(__package__).joinpath("cifar10_sample.zip").open("rb") as file, zipfile.ZipFile(file) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        images = torch.stack([_pixels(io.BytesIO(archive.read(name)), name) for name in names])
    labels = torch.tensor([CLASSES.index(name.removesuffix(".jpg").partition("_")[2]) for name in names])
    sample = ImageSet(images, labels, MEAN, STD, CLASSES)
    return Splits(sample, sample, sample)


def read_photograph(path: Path, *, size: int) -> Tensor:
    """An image file as [1, 3, size, size] uint8: the largest square in its middle, resized.

    Raises:
        DataError: no such file, or not an image.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such image file")
    with path.open("rb") as file:
        return _pixels(file, str(path), size=size).unsqueeze(0)


def _pixels(file: IO[bytes], name: str, *, size: int | None = None) -> Tensor:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingDependencyError("pillow", extra="images", purpose="reading image files") from None
    try:
        image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        if size is not None:
            image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: not an image that can be read ({error})") from None
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
