"""Files of named tensors with a JSON header and a hash of both, written atomically and verified when read."""

import hashlib
import json
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nbsnn.errors import CheckpointError, ConfigError, shown
from nbsnn.files import check_readable, write_atomically
from nbsnn.schema import MOST_CHARACTERS, Misfit, check_header, check_name, parse
from nbsnn.schema import Header as Header
from nbsnn.torchfile import check_seal, read_torch, write_torch
from nbsnn.zoo import PREFIX, locate

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_KEY = "nbsnn"  # of the header, in both kinds of file
_HASH = "content_hash"  # in the header
_MOST_TENSORS = 2**16


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any], *, keep: Path | None = None) -> None:
    """Write tensors and header with a hash of both, atomically.

    Args:
        path: `.pth.tar`, `.pth` and `.pt` write a torch file with a `state_dict`, other names a safetensors file.
        tensors: by name.
        header: fields that `nbsnn.schema` allows.
        keep: path to move an existing file to; unless given, it is replaced.
    Raises:
        CheckpointError: the folder cannot be written or the disk is full; an existing file is intact.
        ConfigError: the path is the name of a bundled network, or the header has a value that no reader accepts, such as a
            metric that is not finite.
    """
    if str(path).startswith(PREFIX):
        raise ConfigError(f"{path}: {PREFIX} is for reading bundled networks; name a file")
    # Tied parameters share storage, which safetensors does not allow: each name gets a copy.
    plain = {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
    text = _header_text(header, plain, path)

    def write(part: Path) -> None:
        if _is_torch_name(path):
            write_torch(part, {"state_dict": plain, _KEY: text})
            return
        try:
            safetensors.torch.save_file(plain, part, {_KEY: text})
        except SafetensorError as error:
            raise RuntimeError(str(error)) from None

    write_atomically(path, write, keep=keep)


def read_tensors(path: str | Path) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors of a file written by `write_tensors`, or of a bundled network, "zoo:cifar10/resnet20-w2a2".

    A file of an earlier version may have no hash: it is read with a warning.

    Raises:
        CheckpointError: the file is missing, truncated, altered, of a newer format, or not written by nbsnn.
    """
    path = locate(path)
    check_readable(path)
    text, state = _read_torch(path) if _is_torch_name(path) else _read_safetensors(path)
    if text is None:
        raise CheckpointError(
            f"{path}: holds no nbsnn header; for a file of the authors' code call nbsnn.load_reference_checkpoint"
        )
    header = _parse_header(text, path)
    _check_tensors(state, path)
    _check_hash(header, text, state, path)
    return header, state


def read_network(path: str | Path) -> tuple[Header, dict[str, Tensor]]:
    """`read_tensors` of a file that holds a network, in any form.

    Raises:
        CheckpointError: as in `read_tensors`, or the file holds the state of a training run.
    """
    header, state = read_tensors(path)
    if "form" not in header:
        raise CheckpointError(
            f"{path}: holds a training state, not a network; name best.safetensors or last.safetensors beside it"
        )
    return header, state


def read_header(path: Path) -> Header | None:
    """The header of a file written by nbsnn, without verifying its hash; None for other and for damaged files."""
    try:
        check_readable(path)
        if _is_torch_name(path):
            return _parse_header(read_torch(path).get(_KEY), path)
        _check_length(path)
        with safe_open(path, "pt") as file:
            return _parse_header((file.metadata() or {}).get(_KEY), path)
    except (CheckpointError, SafetensorError, OSError):
        return None


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in any torch or safetensors file, of whichever program; executes no code.

    Raises:
        CheckpointError: the file is missing or damaged, holds no tensors, or is a checkpoint of a network that is not float.
    """
    check_readable(path)
    text, state = _read_torch(path) if _is_torch_name(path) else _read_safetensors(path)
    if text is not None:
        header = _parse_header(text, path)
        _check_tensors(state, path)
        _check_hash(header, text, state, path)
        if header.get("form") != "float":
            raise CheckpointError(f"{path}: holds no float network; name that file as the checkpoint")
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    for key, tensor in tensors.items():
        _check_plain(key, tensor, path)
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors; save the network's state_dict()")
    return tensors


def is_ours(path: Path) -> bool:
    """Whether the file has a header of nbsnn. (Every safetensors file counts: the authors' code writes none.)"""
    return not _is_torch_name(path) or not path.is_file() or _KEY in read_torch(path)


def content_hash(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the header (without the hash itself) and all tensors: names, types, shapes, bytes."""
    rest = {key: value for key, value in header.items() if key != _HASH}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------- headers


def _header_text(header: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> str:
    """The header with its hash as JSON."""
    try:
        # Hashed as it will be read: JSON turns tuples into lists.
        whole = parse(json.dumps({key: value for key, value in header.items() if key != _HASH}))
        whole[_HASH] = content_hash(whole, tensors)
        check_header(whole)
    except (Misfit, TypeError, ValueError, RecursionError) as error:  # from json: not a plain value, or recursive
        raise ConfigError(f"{path} is not written: in its header, {error}; give another value, or leave it out") from None
    return json.dumps(whole)


def _parse_header(text: Any, path: Path) -> Header:
    """The header, if this version can read it.

    Raises:
        CheckpointError: it has a newer format, or a field does not fit `nbsnn.schema`.
    """
    try:
        if not isinstance(text, str):
            raise Misfit(f"a {type(text).__name__} instead of text")
        header = parse(text)
        version = header.get("format")
        if type(version) is int and version > FORMAT_VERSION:
            raise CheckpointError(f"{path}: format {version} is newer than this package's {FORMAT_VERSION}; upgrade nbsnn")
        check_header(header)
    except Misfit as error:
        raise CheckpointError(
            f"{path}: in its header, {error}; restore the file from a copy, or upgrade nbsnn if a newer version wrote it"
        ) from None
    return header


def _check_hash(header: Header, text: str, state: Mapping[str, Tensor], path: Path) -> None:
    if _HASH not in header:
        _say_that_damage_would_not_show(path)
        return
    # Compared as text as well: 1e-05 and 1E-05 differ in one bit but are the same number.
    if header[_HASH] != content_hash(header, state) or json.dumps(header) != text:
        raise CheckpointError(f"{path}: its content does not match its hash; it was altered or damaged, restore it from a copy")


@cache
def _say_that_damage_would_not_show(path: Path) -> None:
    logger.warning("%s: from an earlier version of nbsnn, without a hash of its content; damage would not be detected", path)


# ------------------------------------------------------------------------------------------------------------- tensors


def _is_torch_name(path: Path) -> bool:
    return path.name.endswith((".pth.tar", ".pth", ".pt"))


def _read_torch(path: Path) -> tuple[Any, dict[str, Any]]:
    """The header as text, if there is one, and the tensors."""
    check_seal(path)
    content = read_torch(path)
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: its state_dict is a {type(state).__name__}, not a dictionary of tensors")
    if state is content and not any(isinstance(value, Tensor) for value in content.values()):
        state = _only_state(content, path)
    return content.get(_KEY), state


def _only_state(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The one dictionary of tensors in a training script's file, such as {"model": ..., "epoch": 3}."""
    inner = {key: value for key, value in content.items()
             if isinstance(value, dict) and value and all(isinstance(item, Tensor) for item in value.values())}  # fmt: skip
    if len(inner) > 1:
        names = shown(", ".join(map(str, inner)))
        raise CheckpointError(f"{path}: holds several dictionaries of tensors, {names}; save the one to load alone")
    return next(iter(inner.values()), content)


def _read_safetensors(path: Path) -> tuple[Any, dict[str, Any]]:
    try:
        _check_length(path)
        with safe_open(path, "pt") as file:
            names = file.keys()
            state = {key: file.get_tensor(key) for key in names} if len(names) <= _MOST_TENSORS else dict.fromkeys(names)
            return (file.metadata() or {}).get(_KEY), state
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: damaged or not a safetensors file ({shown(str(error))}); restore it from a copy"
        ) from None


def _check_length(path: Path) -> None:
    """Raise an error for a safetensors file with an unreasonably long header, before it is read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > 2 * MOST_CHARACTERS:
        raise SafetensorError(f"a header of {length} bytes")


def _check_tensors(state: Any, path: Path) -> None:
    """Raise an error unless `state` is a dictionary of plain tensors with printable names."""
    if not isinstance(state, dict) or len(state) > _MOST_TENSORS:
        raise CheckpointError(f"{path}: holds no dictionary of up to {_MOST_TENSORS} tensors; restore the file from a copy")
    for name, tensor in state.items():
        _check_plain(name, tensor, path)
        try:
            check_name(name, "a tensor's name")
        except Misfit as error:
            raise CheckpointError(f"{path}: {error}; restore the file from a copy") from None
    size, most = sum(tensor.nbytes for tensor in state.values()), path.stat().st_size + 2**20
    if size > most:  # views of the same storage
        raise CheckpointError(f"{path}: holds {size} bytes of tensors in a file of {most}; save copies of them")


def _check_plain(name: object, tensor: object, path: Path) -> None:
    """Raise an error unless a tensor is dense with its own memory: not sparse, and not a view that repeats one number."""
    plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
    if not plain or tensor.nbytes > tensor.untyped_storage().nbytes():  # type: ignore[attr-defined]
        raise CheckpointError(f"{path}: {shown(name)} is no plain tensor; restore the file from a copy")
