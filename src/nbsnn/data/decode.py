"""Image files to tensors, with Pillow: the one place that reads them."""

import math
import random
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nbsnn.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

RESIZE = 256 / 224  # the shorter side of a photograph before its middle is cropped, over the crop's (Krizhevsky et al., 2012)
CROP_AREA, CROP_RATIO = (0.1, 1.0), (0.8, 1.25)  # of random crops: share of the photograph, width over height
_ATTEMPTS = 10


def require_pillow() -> None:
    """Refuse where Pillow is not installed."""
    if find_spec("PIL") is None:
        raise MissingDependencyError("pillow", extra="images", purpose="reading image files")


def open_picture(file: IO[bytes] | Path, name: str) -> "Picture":
    """A decoded RGB picture, turned as its EXIF data says.

    Raises:
        DataError: not an image, or a damaged one.
    """
    require_pillow()
    from PIL import Image, ImageFile, ImageOps

    assert not ImageFile.LOAD_TRUNCATED_IMAGES  # else a cut file would be grey below the cut, in silence
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # a reader fed with garbage raises anything
        raise DataError(f"{name}: not an image that can be read ({' '.join(str(error).split())})") from None


def to_tensor(picture: "Picture") -> Tensor:
    """[3, H, W] uint8."""
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).contiguous()


def whole(file: IO[bytes] | Path, name: str) -> Tensor:
    """The picture as it is, [3, H, W] uint8."""
    return to_tensor(open_picture(file, name))


def square(path: Path, *, size: int) -> Tensor:
    """The largest square in the middle of an image file, resized (bicubic): [3, size, size] uint8."""
    if not path.is_file():
        raise DataError(f"{path}: no such image file")
    from PIL import Image, ImageOps

    return to_tensor(ImageOps.fit(open_picture(path, str(path)), (size, size), Image.Resampling.BICUBIC))


def center_crop(path: str, *, size: int) -> Tensor:
    """As networks for ImageNet are evaluated: the shorter side resized to 8/7 of `size` (bilinear), the middle cropped.

    Returns:
        [3, size, size] uint8.
    """
    picture = open_picture(Path(path), path)
    scale = round(RESIZE * size) / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size + 1) // 2, (height - size + 1) // 2  # halves go up, as in DALI and TorchVision
    # Resizing and cropping in one: only the pixels that are kept are computed.
    x, y = picture.width / width, picture.height / height
    return _resized(picture, size, (left * x, top * y, (left + size) * x, (top + size) * y))


def random_crop(path: str, *, size: int, seed: int) -> Tensor:
    """For training: a random rectangle (10 to 100 % of the area, ratio 0.8 to 1.25), resized; half of them mirrored.

    The rectangle of "random resized crops" (Szegedy et al., 2015). Returns [3, size, size] uint8, decided by the seed.
    """
    picture = open_picture(Path(path), path)
    draw = random.Random(seed)
    crop = _resized(picture, size, random_rectangle(picture.width, picture.height, draw))
    return crop.flip(2) if draw.random() < 0.5 else crop


def random_rectangle(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels; the largest square in the middle where ten attempts fail to fit."""
    for _ in range(_ATTEMPTS):
        area = draw.uniform(*CROP_AREA) * width * height
        ratio = math.exp(draw.uniform(*map(math.log, CROP_RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _resized(picture: "Picture", size: int, box: tuple[float, float, float, float]) -> Tensor:
    from PIL import Image

    return to_tensor(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))
