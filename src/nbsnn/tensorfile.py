"""Files of named tensors with a JSON header, written atomically; nothing that could execute code is ever unpickled."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nbsnn.errors import CheckpointError, ConfigError, shown
from nbsnn.schema import MOST_CHARACTERS, Misfit, check_header, check_name, parse
from nbsnn.schema import Header as Header
from nbsnn.zoo import locate

FORMAT_VERSION = 1
_KEY = "nbsnn"  # of the header, in both kinds of file
_MOST_TENSORS = 2**16


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and header to `path`, whole or not at all. `.pth.tar` and `.pt` give a torch file with a `state_dict`.

    Raises:
        CheckpointError: the folder cannot be written or the disk is full; a file that was there before is intact.
        ConfigError: a value in the header that no reader would take, such as a metric that is not a finite number.
    """
    text = _header_text(header, path)
    # Tied parameters share storage, which safetensors refuses: each name gets a copy of its own.
    plain = {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
    if _is_torch_name(path):
        _write_atomically(path, lambda part: torch.save({"state_dict": plain, _KEY: text}, part))
    else:
        _write_atomically(path, lambda part: safetensors.torch.save_file(plain, part, {_KEY: text}))


def read_tensors(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors of a file that `write_tensors` wrote, or of a bundled network, "zoo:cifar10/resnet20-w2a2".

    Raises:
        CheckpointError: missing, truncated, altered (where the header has a hash), of a newer format, or not ours.
    """
    path = locate(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    if _is_torch_name(path):
        content = _read_torch(path)
        text, state = content.get(_KEY), content.get("state_dict", content)
    else:
        try:
            _check_length(path)
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get(_KEY)
                names = file.keys()
                state = {key: file.get_tensor(key) for key in names} if len(names) <= _MOST_TENSORS else dict.fromkeys(names)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: damaged or not a safetensors file ({error}); restore it from a copy") from None
    if text is None:
        raise CheckpointError(
            f"{path}: holds no nbsnn header; for a file of the authors' code call nbsnn.load_reference_checkpoint"
        )
    header = _parse_header(text, path)
    _check_tensors(state, path)
    if "content_hash" in header and header["content_hash"] != content_hash(header, state):
        raise CheckpointError(f"{path}: its content does not match its hash; it was altered or damaged, restore it from a copy")
    return header, state


def _header_text(header: Mapping[str, Any], path: Path) -> str:
    try:
        text = json.dumps(dict(header))
        check_header(parse(text))
    except (Misfit, TypeError, ValueError, RecursionError) as error:  # of JSON: no plain value, a table that holds itself
        raise ConfigError(f"{path} is not written: in its header, {error}; give another value, or leave it out") from None
    return text


def _parse_header(text: Any, path: Path) -> Header:
    """The header, if it is one of a file that this version can read.

    Raises:
        CheckpointError: it is of a newer format, or a field is not as `nbsnn.schema` says.
    """
    try:
        if not isinstance(text, str):
            raise Misfit(f"a {type(text).__name__} is in the place of text")
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


def _check_length(path: Path) -> None:
    """Refuse a safetensors file with a header beyond all reason before it is read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > 2 * MOST_CHARACTERS:
        raise SafetensorError(f"a header of {length} bytes")


def _check_tensors(state: Any, path: Path) -> None:
    """Refuse what is no dictionary of plain tensors under printable names."""
    if not isinstance(state, dict) or len(state) > _MOST_TENSORS:
        raise CheckpointError(f"{path}: holds no dictionary of up to {_MOST_TENSORS} tensors; restore the file from a copy")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(f"{path}: {shown(name)} is no plain tensor; restore the file from a copy")
        try:
            check_name(name, "a tensor's name")
        except Misfit as error:
            raise CheckpointError(f"{path}: {error}; restore the file from a copy") from None


def content_hash(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header (but for the hash itself) and all tensors: names, types, shapes, bytes."""
    rest = {key: value for key, value in header.items() if key != "content_hash"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_torch_state(path: Path) -> dict[str, Tensor]:
    """The state dict of any torch file, ours or not; executes nothing."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    content = _read_torch(path)
    state = content.get("state_dict", content)
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def is_ours(path: Path) -> bool:
    """Does the file carry our header? (A safetensors file counts as ours: the authors write none.)"""
    return not _is_torch_name(path) or not path.is_file() or _KEY in _read_torch(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    _write_atomically(path, lambda part: part.write_text(text))


def remove_leftovers(folder: Path) -> None:
    """Delete what writers that were killed left behind in a folder."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def _is_torch_name(path: Path) -> bool:
    return path.name.endswith((".pth.tar", ".pth", ".pt"))


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a reader fed with garbage raises anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged or not a torch file of plain tensors ({reason})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def _write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode  # what the user's mask allows; safetensors would make the file private
        write(part)
        part.chmod(mode)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(f"cannot write {path}: {reason}; free some space or choose another folder") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
