"""A tree of photographs: `train/<class>/*.jpg` and `val/<class>/*.jpg`, as ImageNet's, or `<class>/*.jpg` with a share to test.

A label is an index into a list of class names: those that a network was trained with, or else `train`'s folders in order.
    Folders are matched with classes by name, so a missing, empty or additional one shifts no label. Hidden files and folders
    are ignored; one line lists what else is skipped.
"""

import hashlib
import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from nbsnn.data.decode import PUBLISHED, Framing, center_crop
from nbsnn.data.download import DownloadProgress
from nbsnn.data.files import list_folder, printable
from nbsnn.data.images import ImageSet, Splits, split_validation
from nbsnn.data.photos import Loading, PhotoSet
from nbsnn.errors import ConfigError, DataError
from nbsnn.recipe import DataSpec

logger = logging.getLogger(__name__)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images, from TorchVision
_GRAY = (0.449,), (0.226,)  # the means of those
_MEASURED = 2000  # images that the normalization is computed from, at most
_JPEG = (".jpeg", ".jpg")
SUFFIXES = (*_JPEG, ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
_LAYOUT = "a tree of photographs is train/<class>/*.jpg and val/<class>/*.jpg"


def load_tree(
    root: str | Path,
    *,
    classes: Sequence[str] = (),
    validation: int = 0,
    size: int = 224,
    loading: Loading | None = None,
    framing: Framing = PUBLISHED,
    constants: "Constants | Literal['computed'] | None" = None,
    split: float = 0.0,
) -> Splits:
    """The training and the validation images of a tree; the latter also choose the best epoch, as published.

    Args:
        root: the folder that holds `train` and `val`; a tree without `train` can be used for evaluation only.
        classes: names of the classes, in the order of their labels; unless given, the folders of `train` that hold an image
            there or in `val`.
        validation: training images held out to choose the best epoch instead.
        size: of the square images, 224 as published.
        loading: the decoder, and what happens to a corrupt file.
        framing: channels, and what crops show.
        constants: mean and std, ImageNet's unless given; "computed" are those of the training images.
        split: the share of each class to test on, of a tree whose class folders are in `root`, or in `train` without `val`.
    Raises:
        DataError: a folder is missing or has no image, or there are images of another class.
    """
    root = Path(root)
    train, val = tree_parts(root, split)
    names = [_read_alike(name) for name in classes] or _own_classes(train, val)
    if train is val and not classes:
        logger.warning("%s: no train folder; labels are indices of the folders of val, wrong if it lacks a class",
                       printable(root))  # fmt: skip
    chosen = _loader_for([train, val], loading or Loading())
    whose = "the network's classes" if classes else f"the classes of {printable(train.folder)}"
    full = train.photographs(names, whose, size, chosen, framing)
    if constants == "computed" and train is val:
        raise DataError(f"{printable(root)}: no train folder to compute the normalization from; give data.mean and data.std")
    test = full if train is val else val.photographs(names, whose, size, chosen, framing)
    if constants is not None:
        mean, std = measure_constants(full) if constants == "computed" else constants
        full, test = (replace(part, mean=mean, std=std) for part in (full, test))
    return split_validation(full, test, validation)


def tree_parts(root: Path, split: float) -> tuple["_Part", "_Part"]:
    """The training and the test images of a tree."""
    train, val = root / "train", root / "val"
    if not split:
        if not val.is_dir() and root.is_dir():
            raise DataError(
                f"{printable(val)}: no such folder; {_LAYOUT}, or set data.split=0.2 to test on a fifth of each class"
            )
        if train.is_dir() and val.is_dir() and train.samefile(val):
            logger.warning("%s: train and val are the same folder: tested on training images", printable(root))
        found = _look_into(val)
        return (_look_into(train) if train.is_dir() else found), found
    if val.is_dir():
        raise DataError(f"{printable(root)}: has a folder val to test on; leave data.split out")
    return _look_into(train if train.is_dir() else root).divided(split)


Constants = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of each channel, of pixels scaled to 0..1


def measure_constants(images: PhotoSet) -> Constants:
    """Mean and standard deviation of each channel, of up to 2,000 images, evenly spaced."""
    total = squares = torch.zeros(images.shape[0], dtype=torch.float64)
    few = images.some(_MEASURED)
    for start in range(0, len(few), 100):
        pixels = few.pixels(slice(start, start + 100)).double() / 255
        total = total + pixels.mean((2, 3)).sum(0)
        squares = squares + pixels.square().mean((2, 3)).sum(0)
    mean = total / len(few)
    std = (squares / len(few) - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)  # images of one gray have none
    return tuple(round(v, 6) for v in mean.tolist()), tuple(round(v, 6) for v in std.tolist())


def _imagenet(channels: int) -> Constants:
    return (MEAN, STD) if channels == len(MEAN) else _GRAY


def framing_of(spec: DataSpec) -> Framing:
    """Channels and crops in the settings of a recipe."""
    return Framing(spec.channels, spec.center, spec.crop_area, spec.flip)


def constants_of(spec: DataSpec) -> Constants | Literal["computed"] | None:
    """Mean and std in the settings of a recipe, or as `load_tree` takes it."""
    return (spec.mean, spec.std) if spec.mean else "computed" if spec.normalization == "computed" else None


def load_spec(spec: DataSpec, *, size: int, progress: DownloadProgress | None) -> Splits:
    """`load_tree` with the settings of a recipe."""
    loading = Loading(spec.loader, spec.workers, spec.on_corrupt)
    return load_tree(
        spec.root, classes=spec.classes, validation=spec.validation, size=size, loading=loading, framing=framing_of(spec),
        constants=constants_of(spec), split=spec.split,
    )  # fmt: skip


def photographs(spec: DataSpec, paths: Sequence[Path], *, size: int, classes: int) -> ImageSet:
    """Image files, cropped and normalized as those of a tree, with labels of zeros."""
    constants = constants_of(spec) or _imagenet(spec.channels)
    if constants == "computed":
        raise ConfigError("the checkpoint does not store the mean and std of its images; give data.mean and data.std")
    pixels = torch.stack([center_crop(str(path), size=size, framing=framing_of(spec)) for path in paths])
    names = list(spec.classes)
    if not names:
        parts = [_look_into(part) for part in (Path(spec.root) / "train", Path(spec.root) / "val") if part.is_dir()]
        names = _own_classes(parts[0], parts[-1]) if parts else []
        where = f"the class folders of {printable(spec.root)}, in order" if parts else "numbers"
        logger.warning("the checkpoint does not name its classes; their names are %s", where)
    names += [f"class {label}" for label in range(len(names), classes)]
    return ImageSet(pixels, torch.zeros(len(paths), dtype=torch.int64), *constants, tuple(names))


def _own_classes(train: "_Part", val: "_Part") -> list[str]:
    """The class folders of `train` that hold an image there or in `val`, in order."""
    return [name for name, images in train.classes.items() if images or val.classes.get(name)]


@dataclass
class _Part:
    """`train` or `val`: the images of each class folder, and remarks on skipped files."""

    folder: Path
    classes: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def left_out(self, paths: Sequence[str], kind: str, place: str) -> None:
        """Add a remark on skipped files or folders."""
        if paths:
            many = "s" if len(paths) > 1 else ""
            self.remarks.append(f"left out {len(paths):,} {kind}{many} {place}, such as {printable(paths[0])}")

    def divided(self, share: float) -> tuple["_Part", "_Part"]:
        """Training and test images: of each class the share of files whose names hash lowest, at least one in either part.

        Raises:
            DataError: no class has two images.
        """
        train, test = _Part(self.folder, remarks=self.remarks), _Part(self.folder)
        for name, files in self.classes.items():
            ranked = sorted(files, key=lambda file: hashlib.sha256(Path(file).name.encode("utf-8", "surrogateescape")).digest())
            count = min(max(round(share * len(files)), 1), len(files) - 1) if files else 0
            test.classes[name], train.classes[name] = sorted(ranked[:count]), sorted(ranked[count:])
        if any(train.classes.values()) and not any(test.classes.values()):
            raise DataError(f"{printable(self.folder)}: no class has two images to divide; add images, or leave data.split out")
        return train, test

    def photographs(self, names: Sequence[str], whose: str, size: int, loading: Loading, framing: Framing) -> PhotoSet:
        """The images of these classes, labelled by their indices; ImageNet's constants normalize them."""
        unknown = [name for name, images in self.classes.items() if images and name not in names]
        lacking = [name for name in names if not self.classes.get(name)]
        where = printable(self.folder)
        if unknown:
            lacks = f", and lacks {_some(lacking)}" if lacking else ""
            raise DataError(f"{where}: holds {_some(unknown)}, not among {whose}{lacks}; rename or move those folders")
        empty = [name for name, images in self.classes.items() if not images and name not in names]
        self.left_out(empty, "folder", "without an image")
        if lacking and len(lacking) < len(names):
            self.remarks.append(f"no image of {_some(lacking)} ({len(lacking):,} of {len(names):,} classes)")
        remarks = "; ".join(self.remarks)
        if len(lacking) == len(names):
            also = f"; {remarks}" if remarks else ""
            raise DataError(f"{where}: holds no image files ({', '.join(SUFFIXES)}){also}; {_LAYOUT}")
        if remarks:
            logger.warning("%s: %s", where, remarks)
        labelled = [(path, label) for label, name in enumerate(names) for path in self.classes.get(name, ())]
        paths, labels = [path for path, _ in labelled], torch.tensor([label for _, label in labelled])
        return PhotoSet(paths, labels, *_imagenet(framing.channels), tuple(names), size, loading, framing=framing)


def _look_into(folder: Path) -> _Part:
    """The content of `train` or `val`, class by class."""
    if not folder.is_dir():
        raise DataError(f"{printable(folder)}: no such folder; {_LAYOUT}")
    found, top = _Part(folder), list_folder(folder)
    if not top.folders:
        raise DataError(f"{printable(folder)}: holds no class folders; validation images must be sorted into folders by class")
    unnamed, nested, others = [], [], list(top.others)
    for raw in top.folders:
        inside = list_folder(folder / raw)
        name = _read_alike(raw)
        if name in found.classes:
            raise DataError(f"{printable(folder)}: two folders are called {name!r} in different encodings; make them one")
        images = [file for file in inside.files if file.lower().endswith(SUFFIXES)]
        found.classes[name] = [str(folder / raw / file) for file in images]
        unnamed += [f"{raw}/{file}" for file in inside.files if not file.lower().endswith(SUFFIXES)]
        nested += [f"{raw}/{inner}" for inner in inside.folders]
        others += [f"{raw}/{other}" for other in inside.others]
    found.left_out(top.files, "file", "outside the class folders")
    found.left_out(unnamed, "file", "not named as an image")
    found.left_out(others, "pipe, device, socket or broken link", "instead of a file")
    found.left_out(nested, "folder", "within the class folders")
    spelled = Counter(name.casefold() for name in found.classes)
    alike = [name for name in found.classes if spelled[name.casefold()] > 1]
    if alike:
        found.remarks.append(f"folders whose names differ in case alone are classes of their own: {_some(alike)}")
    return found


def _loader_for(parts: Sequence[_Part], loading: Loading) -> Loading:
    """Use Pillow if DALI would decode files differently from a viewer, unless DALI is requested: then log a warning.

    Raises:
        DataError: DALI is requested and cannot read a file.
    """
    if not loading.uses_dali:
        return loading
    files = [path for part in parts for images in part.classes.values() for path in images]
    others = [path for path in files if not path.lower().endswith(_JPEG)]
    if not others or loading.loader == "auto":
        return replace(loading, loader="torch") if others else loading
    unread = [path for path in others if path.lower().endswith(".gif")]
    if unread:
        raise DataError(f"{printable(unread[0])}: DALI does not read GIF files; let Pillow read them (data.loader=torch)")
    logger.warning("%s is no JPEG file: of such, DALI leaves out transparency; Pillow does not (data.loader=torch)",
                   printable(others[0]))  # fmt: skip
    return loading


def _read_alike(name: str) -> str:
    """A folder's name in one Unicode normalization: systems write accents differently."""
    return unicodedata.normalize("NFC", name)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(map(printable, names[:5])) + more
