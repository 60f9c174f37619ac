"""Read and check a batch of CIFAR-10's python release.

The batch is a pickle. The unpickler here accepts only arrays and plain values, so that an untrusted file cannot execute code or
allocate large memory, and every pixel and label is checked.
"""

import io
import pickle
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nbsnn.errors import DataError, shown

_PIXELS = 3 * 32 * 32


def parse_batch(name: str, content: bytes, *, classes: int) -> tuple[Tensor, Tensor]:
    """Pixels [N, 3, 32, 32] uint8 and labels [N] int64.

    Args:
        name: file name for messages.
        content: its bytes.
        classes: labels are 0 to `classes` − 1.
    Raises:
        DataError: not such a batch, or an invalid pixel or label, which the message names.
    """
    with _read_as("a batch of the python release of CIFAR-10", name):
        table = _with_names(_ArrayUnpickler(io.BytesIO(content), encoding="bytes").load())
        if "labels" not in table and "fine_labels" in table:
            raise DataError("holds fine_labels: a batch of CIFAR-100, where one of CIFAR-10 is needed")
        _require_keys(table, "data", "labels")
        labels = _labels(table, classes)
        return _pixels(table, len(labels)), torch.tensor(labels)


def parse_label_names(name: str, content: bytes) -> list[str]:
    """The names of the classes in `batches.meta`, in the order of the labels.

    Raises:
        DataError: not such a file.
    """
    with _read_as("the list of label names of CIFAR-10", name):
        table = _with_names(_ArrayUnpickler(io.BytesIO(content), encoding="bytes").load())
        _require_keys(table, "label_names")
        return [name.decode() if isinstance(name, bytes) else str(name) for name in table["label_names"]]


@contextmanager
def _read_as(what: str, name: str) -> Iterator[None]:
    """Turn any exception from reading a pickle into a DataError that names the file; unpickling garbage can raise anything."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}; unpack or fetch the release again") from None
    except Exception as error:
        reason = shown(" ".join(str(error).split())) if str(error) else type(error).__name__
        raise DataError(f"{name}: not {what} ({reason}); unpack or fetch the release again") from None


def _with_names(batch: Any) -> dict[str, Any]:
    """The batch with text keys; Python 2 wrote bytes."""
    table: dict[str, Any] = {}
    for key, value in batch.items():
        text = key.decode() if isinstance(key, bytes) else str(key)
        if text in table:
            raise DataError(f"holds the key {text!r} twice")
        table[text] = value.array() if isinstance(value, _Array) else value
    return table


def _require_keys(table: dict[str, Any], *keys: str) -> None:
    for key in keys:
        if key not in table:
            raise DataError(f"holds no {key!r}, but {shown(', '.join(map(repr, table)) or 'nothing')}")


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
            raise DataError(f"label {label!r:.40} of image {index} is not one of 0 to {classes - 1}")
    return list(values)


def _pixels(table: dict[str, Any], images: int) -> Tensor:
    data = table["data"]
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _PIXELS:
        found = f"an array of shape {list(data.shape)}" if isinstance(data, np.ndarray) else f"a {type(data).__name__}"
        raise DataError(f"data is {found}, not [N, {_PIXELS}] pixels")
    if len(data) != images:
        raise DataError(f"holds {len(data)} images and {images} labels")
    if not np.issubdtype(data.dtype, np.integer):
        first = f"image 0 holds {data[0, 0]!r:.40}"
        raise DataError(f"data has type {data.dtype}, {first}; pixels are integers from 0 to 255")
    if data.dtype != np.uint8:
        for index in np.flatnonzero(((data < 0) | (data > 255)).any(1))[:1]:
            row = data[index]
            wrong = row[(row < 0) | (row > 255)][0]
            raise DataError(f"image {index} holds the pixel {wrong}; pixels are integers from 0 to 255")
    return torch.from_numpy(data.astype(np.uint8)).reshape(-1, 3, 32, 32)


class _Type:
    """Stand-in for a pickled numpy.dtype: its code, such as "u1", and its byte order."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype[Any]:
        code, order = (text.decode() if isinstance(text, bytes) else str(text) for text in (self.code, self.order))
        return np.dtype(code) if order == "|" else np.dtype(code).newbyteorder(order)  # type: ignore[arg-type]


class _Array:
    """Stand-in for a pickled numpy.ndarray, which NumPy would build from a damaged file without checks."""

    def __init__(self, *_: Any) -> None:
        self.__setstate__((1, (0,), _Type("u1"), False, b""))

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.type, self.columns_first, self.content = state

    def array(self) -> np.ndarray[Any, Any]:
        dtype = self.type.dtype()
        if dtype.kind not in "iufb":  # objects, strings and the like
            raise DataError(f"holds an array of type {dtype}; pixels and labels are integers")
        return np.frombuffer(self.content, dtype).reshape(self.shape, order="F" if self.columns_first else "C")


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """An array as written by protocol 5."""
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", content))
    return array


def _to_bytes(text: str, _encoding: str) -> bytes:
    """Bytes as written by Python 3 for Python 2."""
    return text.encode("latin1")


class _ArrayUnpickler(pickle._Unpickler):
    """Builds the stand-ins above and plain lists, dictionaries, numbers and strings; any other class or function is an error.

    Derived from the unpickler in Python: the one in C allocates any size that a damaged file requests.
    """

    _KNOWN: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Type,
        ("_codecs", "encode"): _to_bytes,
        **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
        **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    }

    read: Callable[[int], bytes]  # the base class sets these two while it loads
    append: Callable[[Any], None]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._KNOWN:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}")
        return self._KNOWN[module, name]

    def _load_bytearray(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))  # at most the rest of the file

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BYTEARRAY8[0]: _load_bytearray}
