"""Look at a tree of images: layout, classes, and the size and color that a network could take."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from nbsnn.data.decode import whole_picture
from nbsnn.data.trees import tree_parts
from nbsnn.errors import DataError

_LOOKED_AT = 60  # images, evenly spaced
_LARGEST = 224  # pixels, as published for ImageNet
_SPLIT = 0.2


@dataclass(frozen=True)
class Survey:
    """What a tree of images holds.

    Attributes:
        classes: names, in the order of labels.
        training: number of training images.
        split: share of each class to test on; 0 for a tree with train and val folders.
        image_size: the shorter side of most images, up to 224.
        channels: 1 if all images are gray.
        alike: whether all images are squares of one size.
    """

    classes: tuple[str, ...]
    training: int
    split: float
    image_size: int
    channels: int
    alike: bool


def survey(root: Path) -> Survey:
    """Read some of the images of a tree.

    Raises:
        DataError: the folder is missing, or holds no images.
    """
    split = 0.0 if (root / "val").is_dir() else _SPLIT
    train, val = tree_parts(root, split)
    classes = tuple(name for name, files in train.classes.items() if files or val.classes.get(name))
    files = [file for name in classes for file in train.classes[name]]
    pictures = []
    for file in files[:: max(1, len(files) // _LOOKED_AT)]:
        try:
            pictures.append(whole_picture(Path(file), file))
        except DataError:  # training reports it
            continue
    if not pictures:
        raise DataError(f"{root}: holds no images that can be read; put them into one folder per class")
    sizes = {tuple(picture.shape[1:]) for picture in pictures}
    side = int(median(min(picture.shape[1:]) for picture in pictures))
    gray = all(bool((picture == picture[:1]).all()) for picture in pictures)
    return Survey(classes, len(files), split, min(side, _LARGEST), 1 if gray else 3, sizes == {(side, side)})
