"""CIFAR-10 in the layout of its python release: a folder `cifar-10-batches-py`, or the archive that holds it.

The release is a set of pickles. They are read by an unpickler that knows arrays and nothing else, so that a file from a
stranger cannot run code.
"""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nbsnn.data.images import ImageSet, Splits, split_validation
from nbsnn.errors import DataError

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # as published with ResNets for CIFAR

_TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
_TEST = ["test_batch"]

Progress = Callable[[int, int], None]  # bytes so far, bytes in all (0: unknown)


def load_cifar10(
    root: str | Path, *, validation: int = 5000, download: bool = False, progress: Progress | None = None
) -> Splits:
    """Images [N, 3, 32, 32]: 50,000 − `validation` for training, `validation` held out, 10,000 for the test.

    Args:
        root: the folder that holds `cifar-10-batches-py` or `cifar-10-python.tar.gz`, or is the former itself.
        validation: images held out of training.
        download: fetch the archive into `root` if neither is there.
        progress: called with the bytes fetched.
    Raises:
        DataError: absent and not asked to download, damaged, or of another layout.
    """
    read = _reader(Path(root), download, progress)
    full = _image_set(read, _TRAIN)
    return split_validation(full, _image_set(read, _TEST), validation)


def _reader(root: Path, download: bool, progress: Progress | None) -> Callable[[str], bytes]:
    folder = root if root.name == FOLDER else root / FOLDER
    if folder.is_dir():
        return lambda name: _read_file(folder / name)
    archive = root if root.name.endswith(".tar.gz") else root / ARCHIVE
    if not archive.is_file():
        if not download:
            raise DataError(
                f"{root}: no {FOLDER} folder and no {ARCHIVE} there; put one there, name where it lies (--root), or let it be "
                "fetched (download=True, nbsnn train --set data.download=true)"
            )
        fetch(URL, archive, md5=MD5, progress=progress)
    contents = _read_archive(archive)
    return lambda name: contents.get(name) or _missing(archive, name)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); unpack the archive again") from None


def _read_archive(archive: Path) -> dict[str, bytes]:
    wanted = {*_TRAIN, *_TEST}
    try:
        with tarfile.open(archive) as tar:
            members = [m for m in tar if m.isfile() and Path(m.name).name in wanted]
            contents = {Path(m.name).name: file.read() for m in members if (file := tar.extractfile(m))}
        with gzip.open(archive) as stream:  # to the very end, where the check sum is
            while stream.read(1 << 22):
                pass
        return contents
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{archive}: damaged archive ({str(error).splitlines()[0]}); fetch it again") from None


def _missing(archive: Path, name: str) -> bytes:
    raise DataError(f"{archive}: holds no {name}; is it the python release of CIFAR-10?")


def _image_set(read: Callable[[str], bytes], names: list[str]) -> ImageSet:
    parts = [_parse(name, read(name)) for name in names]
    pixels = np.concatenate([data for data, _ in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([target for _, target in parts])
    return ImageSet(torch.from_numpy(pixels), torch.from_numpy(labels), MEAN, STD, CLASSES)


def _parse(name: str, content: bytes) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        data, labels = np.asarray(batch["data"], np.uint8), np.asarray(batch["labels"], np.int64)
        if data.shape != (len(labels), 3072):
            raise ValueError(f"shape {data.shape}")
    except Exception as error:  # an unpickler fed with garbage raises anything
        raise DataError(f"{name}: not a batch of the python release of CIFAR-10 ({error})") from None
    return data, labels


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays; refuses every other class or function."""

    _ALLOWED = frozenset(
        {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
        | {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
        | {(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}")
        return super().find_class(module, name)


def fetch(url: str, path: Path, *, md5: str, progress: Progress | None = None) -> None:
    """Download a file, verify its MD5 sum, and only then give it its name.

    Raises:
        DataError: the network or the disk failed, or the sum differs; nothing is left behind.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as response, part.open("wb") as file:
            total, done = int(response.headers.get("Content-Length") or 0), 0
            while block := response.read(1 << 18):
                file.write(block)
                digest.update(block)
                done += len(block)
                if progress:
                    progress(done, total)
        if digest.hexdigest() != md5:
            raise DataError(f"{url}: MD5 sum {digest.hexdigest()} instead of {md5}; try again, or fetch it by hand")
        os.replace(part, path)
    except (urllib.error.URLError, OSError, TimeoutError) as error:
        raise DataError(
            f"{url}: cannot be fetched ({getattr(error, 'reason', error)}); put the archive at {path} by hand"
        ) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
