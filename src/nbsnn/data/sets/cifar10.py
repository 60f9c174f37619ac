"""CIFAR-10 in the layout of its python release: a folder `cifar-10-batches-py`, or the archive that contains it."""

import gzip
import logging
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from nbsnn.data.cifar_batch import parse_batch, parse_label_names
from nbsnn.data.decode import square
from nbsnn.data.download import DownloadProgress, fetch
from nbsnn.data.files import printable, why_no_file
from nbsnn.data.images import ImageSet, Splits, split_validation
from nbsnn.data.registry import DataSet
from nbsnn.errors import DataError, shown
from nbsnn.recipe import DataSpec

logger = logging.getLogger(__name__)

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # as published with ResNets for CIFAR

_TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
_TEST = ["test_batch"]
_NAMES = "batches.meta"  # not required, since it only says what is known
_IMAGES = 50_000, 10_000
_LARGEST = 2**28  # bytes of one batch, which has 31 million


def load_cifar10(
    root: str | Path, *, validation: int = 5000, download: bool = False, progress: DownloadProgress | None = None
) -> Splits:
    """Images [N, 3, 32, 32]: 50,000 − `validation` for training, `validation` held out, 10,000 for the test.

    Args:
        root: the folder that contains `cifar-10-batches-py` or `cifar-10-python.tar.gz`, or the former itself.
        validation: images held out of training.
        download: download the archive into `root` if both are missing.
        progress: called with the downloaded bytes.
    Raises:
        DataError: missing without `download`, damaged, or of another layout; an invalid pixel or label; other classes.
    """
    read = _reader(Path(root), download, progress)
    _check_classes(read(_NAMES, optional=True))
    full, test = _image_set(read, _TRAIN), _image_set(read, _TEST)
    if (len(full), len(test)) != _IMAGES:
        logger.warning("CIFAR-10 has %d training and %d test images; %s holds %d and %d", *_IMAGES, root, len(full), len(test))
    return split_validation(full, test, validation)


def _load(spec: DataSpec, *, size: int, progress: DownloadProgress | None) -> Splits:
    return load_cifar10(spec.root, validation=spec.validation, download=spec.download, progress=progress)


def photographs(spec: DataSpec, paths: Sequence[Path], *, size: int, classes: int) -> ImageSet:
    """The largest center squares of image files, with labels of zeros."""
    pixels = torch.stack([square(path, size=size) for path in paths])
    return ImageSet(pixels, torch.zeros(len(paths), dtype=torch.int64), MEAN, STD, CLASSES)


DATA_SET = DataSet(_load, validation=5000, photographs=photographs, normalization=(MEAN, STD))


class _Reader(Protocol):
    """Reads a file of the release by its name; empty if it is optional and missing."""

    def __call__(self, name: str, *, optional: bool = False) -> bytes: ...


def _reader(root: Path, download: bool, progress: DownloadProgress | None) -> _Reader:
    folder = root if root.name == FOLDER else root / FOLDER
    if folder.is_dir():
        return partial(_read_file, folder)
    archive = root if root.name.endswith(".tar.gz") else root / ARCHIVE
    reason = why_no_file(archive)
    if reason and archive.exists():
        raise DataError(f"{printable(archive)}: cannot be read ({reason}); put the archive there")
    if reason:
        if not download:
            raise DataError(
                f"{printable(root)}: no {FOLDER} folder and no {ARCHIVE} there; put one there, name the folder that "
                "holds it (root=FOLDER), or let it be downloaded (download=True)"
            )
        fetch(URL, archive, md5=MD5, progress=progress)
    return partial(_read_member, archive, _read_archive(archive))


def _read_file(folder: Path, name: str, *, optional: bool = False) -> bytes:
    path = folder / name
    if optional and not path.exists():
        return b""
    reason = why_no_file(path)
    try:
        if reason is None:
            return path.read_bytes()
    except OSError as error:
        reason = error.strerror
    raise DataError(f"{printable(path)}: cannot be read ({reason}); unpack the archive again")


def _read_archive(archive: Path) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                if not member.isfile() or name not in (*_TRAIN, *_TEST, _NAMES):
                    continue
                if name in contents or member.size > _LARGEST:
                    fault = "twice" if name in contents else f"with {member.size:,} bytes"
                    raise DataError(f"{printable(archive)}: holds {name} {fault}; fetch it again")
                if file := tar.extractfile(member):
                    contents[name] = file.read()
        with gzip.open(archive) as stream:  # to the end, where the checksum is
            while stream.read(1 << 22):
                pass
        return contents
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{printable(archive)}: damaged archive ({reason}); fetch it again") from None


def _read_member(archive: Path, contents: Mapping[str, bytes], name: str, *, optional: bool = False) -> bytes:
    if name not in contents and not optional:
        raise DataError(f"{printable(archive)}: holds no {name}; is it the python release of CIFAR-10?")
    return contents.get(name, b"")


def _check_classes(content: bytes) -> None:
    """Raise an error if the release's own list of classes is not the one that labels are named by here."""
    names = parse_label_names(_NAMES, content) if content else list(CLASSES)
    if names != list(CLASSES):
        at = next((i for i, pair in enumerate(zip(names, CLASSES, strict=False)) if pair[0] != pair[1]), len(CLASSES))
        found = f"label {at} is {shown(names[at])}" if at < len(names) else f"{len(names)} labels"
        raise DataError(
            f"{_NAMES}: {found}, and not as in CIFAR-10 ({', '.join(CLASSES)}); for images of your own, sort them into folders "
            "by class and use the data set folder (data.name=folder)"
        )


def _image_set(read: _Reader, names: list[str]) -> ImageSet:
    pixels, labels = zip(*(parse_batch(name, read(name), classes=len(CLASSES)) for name in names), strict=True)
    return ImageSet(torch.cat(pixels), torch.cat(labels), MEAN, STD, CLASSES)
