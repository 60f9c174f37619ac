"""Decode image files to tensors with Pillow."""

import math
import random
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nbsnn.data.files import printable, why_no_file
from nbsnn.errors import ConfigError, DataError, MissingDependencyError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

RESIZE = 256 / 224  # the shorter side before the center crop, divided by the crop's (Krizhevsky et al., 2012)
CROP_AREA, CROP_RATIO = (0.1, 1.0), (0.8, 1.25)  # of random crops: share of the photograph, width over height
_ATTEMPTS = 10
_ORIENTATION = 0x0112  # EXIF's tag
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF's
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


def require_pillow() -> None:
    """Raise an error if Pillow is not installed."""
    if find_spec("PIL") is None:
        raise MissingDependencyError("pillow", extra="images", purpose="reading image files")


def open_picture(file: IO[bytes] | Path, name: str) -> "Picture":
    """A decoded RGB image as a viewer shows it: with its EXIF orientation, the first frame of an animation.

    Raises:
        DataError: not an image, a damaged one, one with more pixels than Pillow allows, or one of a mode without a defined
            white.
    """
    require_pillow()
    from PIL import Image, ImageFile

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ConfigError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, which shows cut files as grey; set it to False")
    try:
        reason = why_no_file(file) if isinstance(file, Path) else None
        if reason:
            raise DataError(reason)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                image.load()
                return _turned(as_shown(image), image)
    except Exception as error:  # decoding garbage can raise any exception
        raise DataError(f"{printable(name)}: not an image that can be read ({' '.join(str(error).split())})") from None


def _turned(picture: "Picture", source: "Picture") -> "Picture":
    """The image, rotated or flipped according to EXIF data; unreadable EXIF data is ignored."""
    from PIL.Image import Transpose

    try:
        orientation = source.getexif().get(_ORIENTATION, 1)
    except Exception:
        orientation = 1
    turns = (
        Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE,
        Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90,
    )  # fmt: skip
    return picture.transpose(turns[orientation - 2]) if orientation in range(2, 9) else picture


def as_shown(image: "Picture") -> "Picture":
    """An image of any of Pillow's modes in RGB: composited on white, 16 bits scaled to 8.

    Raises:
        DataError: the mode has no range from black to white: 32-bit integers (I) and floats (F).
    """
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _from_16_bits(image)
    if image.mode in ("I", "F"):
        raise DataError(f"pixels of mode {image.mode} have no defined white; save it with 8 or 16 bits")
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if not image.has_transparency_data:
        return image.convert("RGB")
    color = image.info.get("transparency")
    if isinstance(color, tuple) and max(color) > 255:
        raise DataError("16-bit colours of which one is transparent; save it with 8 bits")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")


def _from_16_bits(image: "Picture") -> "Picture":
    """Gray values from 0 to 2¹⁶ − 1, or with the number of bits in a TIFF file, in RGB."""
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {})  # of TIFF
    white = 2 ** int(tags.get(_BITS_PER_SAMPLE, (16,))[0]) - 1
    grey = (values * 255 + white // 2) // white
    grey[values == image.info.get("transparency", -1)] = 255
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")


def to_tensor(picture: "Picture") -> Tensor:
    """[3, H, W] uint8, or [1, H, W] of a gray image."""
    values = torch.from_numpy(np.asarray(picture).copy())
    return values.permute(2, 0, 1).contiguous() if values.dim() == 3 else values[None]


def whole_picture(file: IO[bytes] | Path, name: str) -> Tensor:
    """The image in its full size, [3, H, W] uint8."""
    return to_tensor(open_picture(file, name))


def write_picture(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Save an image [H, W, 3] as a file of the kind that its name says."""
    require_pillow()
    from PIL import Image

    Image.fromarray(pixels).save(path)


def square(path: Path, *, size: int) -> Tensor:
    """The largest center square of an image file, resized (bicubic): [3, size, size] uint8."""
    from PIL import Image, ImageOps

    return to_tensor(ImageOps.fit(open_picture(path, str(path)), (size, size), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Framing:
    """What a file shows, by default as published for ImageNet.

    Attributes:
        channels: 3, or 1 for gray.
        center: the share of the shorter side that evaluation shows.
        crop_area: the smallest share of the area that a random crop shows.
        flip: whether random crops are mirrored, half of them.
    """

    channels: int = 3
    center: float = 0.875
    crop_area: float = CROP_AREA[0]
    flip: bool = True


PUBLISHED = Framing()


def center_crop(path: str, *, size: int, framing: Framing = PUBLISHED) -> Tensor:
    """The evaluation transform: resize the shorter side to 8/7 of `size` (bilinear), for ImageNet, then center crop.

    Returns:
        [C, size, size] uint8.
    """
    picture = open_picture(Path(path), path)
    shorter = round(RESIZE * size) if framing.center == PUBLISHED.center else round(size / framing.center)
    scale = shorter / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size + 1) // 2, (height - size + 1) // 2  # halves round up, as in DALI and TorchVision
    # Resize and crop in one operation, which computes only the pixels of the crop.
    x, y = picture.width / width, picture.height / height
    return _resized(picture, size, (left * x, top * y, (left + size) * x, (top + size) * y), framing)


def random_crop(path: str, *, size: int, seed: int, framing: Framing = PUBLISHED) -> Tensor:
    """The training transform: a random crop (10 to 100 % of the area, aspect ratio 0.8 to 1.25), resized; half are flipped.

    The crop is that of "random resized crop" (Szegedy et al., 2015). Returns [C, size, size] uint8, determined by the seed.
    """
    picture = open_picture(Path(path), path)
    draw = random.Random(seed)
    area = (framing.crop_area, CROP_AREA[1])
    crop = _resized(picture, size, random_rectangle(picture.width, picture.height, draw, area), framing)
    return crop.flip(2) if framing.flip and draw.random() < 0.5 else crop


def random_rectangle(
    width: int, height: int, draw: random.Random, share: tuple[float, float] = CROP_AREA
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels; the largest center square if ten attempts do not fit."""
    for _ in range(_ATTEMPTS):
        area = draw.uniform(*share) * width * height
        ratio = math.exp(draw.uniform(*map(math.log, CROP_RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _resized(picture: "Picture", size: int, box: tuple[float, float, float, float], framing: Framing) -> Tensor:
    from PIL import Image

    resized = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return to_tensor(resized if framing.channels == 3 else resized.convert("L"))
