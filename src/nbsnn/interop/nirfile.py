"""NIR files: the packages that write and read them, imported here only, and checks of files from elsewhere."""

import re
from pathlib import Path
from typing import Any

import torch

from nbsnn.errors import CheckpointError, MissingDependencyError, shown
from nbsnn.files import check_readable, write_atomically

MOST_ARRAY_BYTES = 2**32  # of a file's arrays, uncompressed
MOST_ITEMS = 10**6  # groups and arrays in a file
_DEPTH = 16  # of groups in groups
_FILTERS = {1, 2, 3, 4, 32000}  # gzip, shuffle, checksum, szip, lzf: HDF5's own and h5py's; others are loaded as code


def nir_package() -> Any:
    """The package nir.

    Raises:
        MissingDependencyError: with the install command.
    """
    try:
        import nir
    except ImportError:
        raise MissingDependencyError("nir", extra="nir", purpose="The NIR format") from None
    return nir


def node_name(layer: str) -> str:
    """The name in a NIR graph of one of our layers: "stage1.0.first.act" → "stage1_0_first_act".

    Executors make attributes of these names, so they consist of letters, digits and underscores.
    """
    name = re.sub(r"\W", "_", layer, flags=re.ASCII)
    return name if name[:1].isalpha() else f"n{name}"


def axis_numbers(value: Any, axes: int) -> Any:
    """A stride, padding or dilation as torch takes it: text such as "same", or one number per axis."""
    if isinstance(value, (str, bytes)):
        return value if isinstance(value, str) else value.decode()
    numbers = torch.as_tensor(value).flatten().tolist()
    return tuple(int(n) for n in (numbers * axes if len(numbers) == 1 else numbers))


def write_nir(path: Path, graph: Any) -> None:
    """Write a `nir.NIRGraph` to an HDF5 file, atomically.

    Raises:
        CheckpointError: the file cannot be written.
    """
    nir = nir_package()
    write_atomically(path, lambda part: nir.write(str(part), graph))


def read_nir(path: Path) -> Any:
    """A `nir.NIRGraph` from a file of unknown origin. Reading executes no code, and memory is bounded.

    Raises:
        CheckpointError: the file is missing, damaged, too large, refers to other files, or is not a NIR file.
        MissingDependencyError: nir is not installed.
    """
    nir = nir_package()
    check_readable(path, "NIR file")
    try:
        _check_contents(path)
        graph = nir.read(str(path))
    except CheckpointError:
        raise
    except Exception as error:  # nir and h5py raise all kinds for files that are not as they expect
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not a NIR file, or damaged ({shown(reason)}); export it again") from None
    if not isinstance(graph, nir.NIRGraph):
        raise CheckpointError(f"{path}: holds a single {type(graph).__name__} node, not a graph; export a network")
    return graph


def _check_contents(path: Path) -> None:
    """Raise an error for what a NIR file has no use for, before any array is read."""
    import h5py

    items = size = 0
    with h5py.File(path, "r") as file:
        waiting = [(file, 0)]
        while waiting:
            group, depth = waiting.pop()
            for name in group:
                where = f"{path}: {shown(f'{group.name}/{name}')}"
                items += 1
                if items > MOST_ITEMS or depth > _DEPTH:
                    raise CheckpointError(
                        f"{path}: more than {MOST_ITEMS:,} items or {_DEPTH} levels; export the network in parts"
                    )
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise CheckpointError(f"{where} is a link; only files that hold all their data are read")
                item = group[name]
                if isinstance(item, h5py.Group):
                    waiting.append((item, depth + 1))
                    continue
                size += _checked_bytes(where, item)
                if size > MOST_ARRAY_BYTES:
                    raise CheckpointError(
                        f"{path}: its arrays have more than {MOST_ARRAY_BYTES:,} bytes; export a smaller network"
                    )


def _checked_bytes(where: str, array: Any) -> int:
    """Bytes of an array in memory."""
    plist = array.id.get_create_plist()
    filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
    if array.is_virtual or array.external:
        raise CheckpointError(f"{where} is stored in another file; only files that hold all their data are read")
    if not filters <= _FILTERS:
        raise CheckpointError(f"{where} is compressed by filter {min(filters - _FILTERS)}; write it with gzip")
    if array.shape is None or array.dtype.kind not in "fiubSO" or (array.dtype.hasobject and array.dtype.metadata is None):
        raise CheckpointError(f"{where} has type {array.dtype}; NIR files hold numbers and text")
    size: int = array.size * max(array.dtype.itemsize, 1)
    return size
