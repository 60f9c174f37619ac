"""ONNX files as protobuf messages, read within limits: nothing in a file is executed, and no other file is opened.

A message is scanned before it is parsed. Parsed objects are up to a hundred times as large as their bytes, so everything but
the numbers of tensors must be small, and tensors must be as large as their shapes say.
"""

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from nbsnn.errors import CheckpointError, shown
from nbsnn.files import check_readable
from nbsnn.onnx_package import onnx_package

_MOST_BYTES = 2**31 - 1  # of a file, as protobuf has it
_MOST_STRUCTURE = 2**24  # bytes that are not numbers of tensors, with 64 for each object; a thousand layers take a tenth
_MOST_VALUES = 2**29  # of a tensor
_GRAPH, _NODE, _INITIALIZER, _ATTRIBUTE, _TENSOR = 7, 1, 5, 5, 5  # fields of ModelProto, GraphProto, NodeProto, AttributeProto
_NUMBERS = (4, 5, 7, 9, 10, 11)  # fields of TensorProto, packed
_OBJECT = 64  # bytes of a parsed field, however short it is
_FEWEST_OPSET, _NEWEST_OPSET = 10, 30  # 10 is the first with QuantizeLinear
_TYPES = {
    "float32", "float64", "float16", "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (4, 8, 16, 32, 64)),
}  # fmt: skip


def read_model(path: Path) -> Any:
    """The ModelProto of a file.

    Raises:
        CheckpointError: the file is missing, damaged, no ONNX file, too large, or refers to other files.
        MissingDependencyError: onnx is not installed.
    """
    onnx = onnx_package()
    from google.protobuf.message import DecodeError

    check_readable(path, "ONNX file")
    if path.stat().st_size > _MOST_BYTES:
        raise CheckpointError(f"{path}: has more than 2 GiB; an ONNX file with external data is not read, nor one of that size")
    data = memoryview(path.read_bytes())
    try:
        _check_structure(data)
        model = onnx.ModelProto()
        model.ParseFromString(bytes(data))
        graph = model.graph
        if not graph.node or not graph.output:
            raise ValueError("it has no nodes or no output")
    except (ValueError, DecodeError) as error:
        raise CheckpointError(f"{path}: not an ONNX file, or damaged ({shown(str(error))}); export it again") from None
    _check_model(model, path)
    return model


def _check_model(model: Any, path: Path) -> None:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = versions.get("", versions.get("ai.onnx", 0))
    if not _FEWEST_OPSET <= opset <= _NEWEST_OPSET:
        raise CheckpointError(
            f"{path}: has operators of version {opset}, and {_FEWEST_OPSET} to {_NEWEST_OPSET} are read; convert it with "
            "onnx.version_converter"
        )
    if model.functions:
        raise CheckpointError(f"{path}: defines functions ({shown(model.functions[0].name)}); inline them with onnx.inliner")
    if model.graph.sparse_initializer:
        raise CheckpointError(f"{path}: has sparse weights, which are not read; export dense ones")


def numbers_of(tensor: Any, path: Path) -> NDArray[Any]:
    """The numbers of a TensorProto.

    Raises:
        CheckpointError: they are in another file, of another type, too many, or not as many as the shape says.
    """
    onnx, name = onnx_package(), shown(tensor.name or "a constant")

    def refuse(what: str) -> NoReturn:
        raise CheckpointError(f"{path}: {name} {what}; export it again")

    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise CheckpointError(
            f"{path}: {name} is in another file; export with all data in one file (save_as_external_data=False)"
        )
    if any(size < 0 for size in tensor.dims) or prod(tensor.dims) > _MOST_VALUES:
        refuse(f"has a shape that is not read ({shown(list(tensor.dims))})")
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (KeyError, TypeError, ValueError):
        refuse(f"has an unknown type ({tensor.data_type})")
    if str(dtype) not in _TYPES:
        refuse(f"has the type {dtype}, and no network is made of that")
    # A shape without data would be allocated: there must be a byte for every eight values.
    if tensor.ByteSize() * 8 < prod(tensor.dims):
        refuse(f"has the shape {shown(list(tensor.dims))}, and fewer numbers")
    try:
        array: NDArray[Any] = onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # of several packages, on damaged data
        refuse(f"is damaged ({shown(str(error).splitlines()[0] if str(error) else type(error).__name__)})")
    whole = array.dtype.kind in "iu" or "int" in str(array.dtype)
    wider = np.uint64 if str(array.dtype).startswith("u") else np.int64  # of 4 bits, which NumPy does not compute with
    return array.astype(wider) if whole and array.dtype.kind not in "iu" else array


# ----------------------------------------------------------------------------------------------------------------- scan


def _check_structure(data: memoryview) -> None:
    """Raise ValueError unless everything but the numbers of tensors is small."""
    left = _MOST_STRUCTURE

    def look(message: memoryview, paths: Sequence[tuple[int, ...]]) -> None:
        """Count the bytes of a message, but not those of the fields at the ends of paths."""
        nonlocal left
        for field, part in _fields(message):
            further = [path[1:] for path in paths if path[0] == field]
            left -= _OBJECT
            if () not in further:
                if further:
                    look(part, further)
                else:
                    left -= len(part)
            if left < 0:
                raise ValueError("too many parts that are no weights")

    tensors = ((_GRAPH, _INITIALIZER), (_GRAPH, _NODE, _ATTRIBUTE, _TENSOR))
    look(data, [(*path, number) for path in tensors for number in _NUMBERS])


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields of a protobuf message with their bytes; of numbers that are not packed, none."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, kind = key >> 3, key & 7
        if kind == 2:
            size, at = _varint(data, at)
        else:
            if kind not in (0, 1, 5):
                raise ValueError("it is not a protobuf message")
            size = {1: 8, 5: 4}.get(kind, 0)
            if kind == 0:
                _, at = _varint(data, at)
        if at + size > len(data):
            raise ValueError("it ends early")
        yield field, data[at : at + size] if kind == 2 else data[:0]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends early")
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError("it is not a protobuf message")
