"""One batch of CIFAR-10's python release: a pickle, read by an unpickler that knows arrays and nothing else, so that a file
from a stranger cannot run code, and checked value by value.
"""

import io
import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbsnn.errors import DataError

_PIXELS = 3 * 32 * 32


def parse_batch(name: str, content: bytes, *, classes: int) -> tuple[Tensor, Tensor]:
    """Pixels [N, 3, 32, 32] uint8 and labels [N] int64.

    Args:
        name: of the file, for messages.
        content: its bytes.
        classes: labels are 0 to `classes` − 1.
    Raises:
        DataError: not such a batch, or a pixel or label that is none; says which.
    """
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        table = _with_names(batch)
        labels = _labels(table, classes)
        return _pixels(table, len(labels), len(content)), torch.tensor(labels)
    except DataError as error:
        raise DataError(f"{name}: {error}; unpack or fetch the release again") from None
    except Exception as error:  # an unpickler fed with garbage raises anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name}: not a batch of the python release of CIFAR-10 ({reason})") from None


def _with_names(batch: Any) -> dict[str, Any]:
    """The batch with text for keys; Python 2 wrote bytes."""
    table: dict[str, Any] = {}
    for key, value in batch.items():
        text = key.decode() if isinstance(key, bytes) else str(key)
        if text in table:
            raise DataError(f"holds the key {text!r} twice")
        table[text] = value
    if "labels" not in table and "fine_labels" in table:
        raise DataError("holds fine_labels: a batch of CIFAR-100, where one of CIFAR-10 is needed")
    for key in ("data", "labels"):
        if key not in table:
            raise DataError(f"holds no {key!r}, but {', '.join(map(repr, table)) or 'nothing'}")
    return table


def _labels(table: dict[str, Any], classes: int) -> list[int]:
    values = table["labels"]
    if isinstance(values, np.ndarray) and values.ndim == 1:
        values = values.tolist()
    if not isinstance(values, (list, tuple)):
        raise DataError(f"labels is a {type(values).__name__}, not a list of numbers")
    if not values:
        raise DataError("holds 0 images")
    for index, label in enumerate(values):
        if type(label) is not int or not 0 <= label < classes:
            raise DataError(f"label {label!r:.40} of image {index} is none of 0 to {classes - 1}")
    return list(values)


def _pixels(table: dict[str, Any], images: int, file_size: int) -> Tensor:
    data = table["data"]
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _PIXELS:
        found = f"an array of shape {list(data.shape)}" if isinstance(data, np.ndarray) else f"a {type(data).__name__}"
        raise DataError(f"data is {found}, not [N, {_PIXELS}] pixels")
    if len(data) != images:
        raise DataError(f"holds {len(data)} images and {images} labels")
    if not np.issubdtype(data.dtype, np.integer):
        first = f"image 0 holds {data[0, 0]!r:.40}"
        raise DataError(f"data has type {data.dtype}, {first}; pixels are whole numbers from 0 to 255")
    if data.nbytes > file_size:  # an array that the file only claims to hold
        raise DataError(f"data takes {data.nbytes} bytes, the file has {file_size}")
    if data.dtype != np.uint8:
        for index in np.flatnonzero(((data < 0) | (data > 255)).any(1))[:1]:
            row = data[index]
            wrong = row[(row < 0) | (row > 255)][0]
            raise DataError(f"image {index} holds the pixel {wrong}; pixels are whole numbers from 0 to 255")
    return torch.from_numpy(data.astype(np.uint8)).reshape(-1, 3, 32, 32)


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
