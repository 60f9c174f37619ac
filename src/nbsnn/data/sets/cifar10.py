"""CIFAR-10 in the layout of its python release: a folder `cifar-10-batches-py`, or the archive that contains it."""

import gzip
import logging
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from nbsnn.data.cifar_batch import parse_batch
from nbsnn.data.decode import square
from nbsnn.data.download import DownloadProgress, fetch
from nbsnn.data.files import printable, why_no_file
from nbsnn.data.images import ImageSet, Splits, split_validation
from nbsnn.data.registry import DataSet
from nbsnn.errors import DataError
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
        DataError: missing without `download`, damaged, or of another layout; an invalid pixel or label.
    """
    read = _reader(Path(root), download, progress)
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


DATA_SET = DataSet(_load, validation=5000, photographs=photographs)


def _reader(root: Path, download: bool, progress: DownloadProgress | None) -> Callable[[str], bytes]:
    folder = root if root.name == FOLDER else root / FOLDER
    if folder.is_dir():
        return lambda name: _read_file(folder / name)
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
    contents = _read_archive(archive)
    return lambda name: contents[name] if name in contents else _missing(archive, name)


def _read_file(path: Path) -> bytes:
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
                if not member.isfile() or name not in (*_TRAIN, *_TEST):
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


def _missing(archive: Path, name: str) -> bytes:
    raise DataError(f"{printable(archive)}: holds no {name}; is it the python release of CIFAR-10?")


def _image_set(read: Callable[[str], bytes], names: list[str]) -> ImageSet:
    pixels, labels = zip(*(parse_batch(name, read(name), classes=len(CLASSES)) for name in names), strict=True)
    return ImageSet(torch.cat(pixels), torch.cat(labels), MEAN, STD, CLASSES)
