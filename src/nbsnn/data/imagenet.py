"""ImageNet as a tree of photographs: `train/<class>/*.JPEG` and `val/<class>/*.JPEG`, classes named by their WordNet id."""

import logging
from pathlib import Path

import torch

from nbsnn.data.images import Splits, split_validation
from nbsnn.data.photos import Loading, PhotoSet
from nbsnn.errors import DataError

logger = logging.getLogger(__name__)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images, as TorchVision states them
SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".webp"})


def load_imagenet(root: str | Path, *, validation: int = 0, size: int = 224, loading: Loading | None = None) -> Splits:
    """The training and the validation images of a tree; the latter also choose the best epoch, as published.

    Args:
        root: the folder that holds `train` and `val`; a tree without `train` can be evaluated on, not trained on.
        validation: training images held out to choose the best epoch instead.
        size: of the square images, 224 as published.
        loading: by whom files are decoded, and what happens to a damaged one.
    Raises:
        DataError: a folder is missing or empty, or validation has classes that training does not have.
    """
    root, loading = Path(root), loading or Loading()
    val = root / "val"
    train = root / "train" if (root / "train").is_dir() else val
    classes = _classes(train)
    strangers = sorted(set(_classes(val)) - set(classes))
    if strangers:
        raise DataError(f"{val}: holds classes that {train} does not: {', '.join(strangers[:5])}")
    full, test = (_photographs(folder, classes, size, loading) for folder in (train, val))
    return split_validation(full, test, validation)


def class_names(root: Path, count: int) -> tuple[str, ...]:
    """Names for `count` classes: the folders' under `root`, and numbers for those that have none."""
    folder = next((f for f in (root / "train", root / "val") if f.is_dir()), None)
    names = _classes(folder) if folder else []
    return (*names, *(f"class {label}" for label in range(len(names), count)))


def _classes(folder: Path) -> list[str]:
    """Folder names in order; their places are the labels."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; an ImageNet tree is train/<class>/*.JPEG and val/<class>/*.JPEG")
    names = [entry.name for entry in _entries(folder) if entry.is_dir()]
    if not names:
        raise DataError(f"{folder}: holds no class folders; validation images must be sorted into folders by class")
    return names


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None


def _photographs(folder: Path, classes: list[str], size: int, loading: Loading) -> PhotoSet:
    paths, labels, others = [], [], []
    for label, name in enumerate(classes):
        for path in _entries(folder / name) if (folder / name).is_dir() else ():
            if path.suffix.lower() in SUFFIXES:
                paths.append(str(path))
                labels.append(label)
            else:
                others.append(str(path))
    if others:
        logger.warning("%s: skipped %d files that are not named as images, such as %s", folder, len(others), others[0])
    if not paths:
        raise DataError(f"{folder}: holds no image files ({', '.join(sorted(SUFFIXES))})")
    return PhotoSet(paths, torch.tensor(labels), MEAN, STD, tuple(classes), size, loading)
