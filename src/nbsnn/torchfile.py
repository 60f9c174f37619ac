"""Torch files: read without executing code, and written with a hash of every byte of the file.

A torch file is a zip archive of a pickle and of raw tensors, and torch does not verify the archive's checksums. Files written
by nbsnn have the SHA-256 of all preceding bytes as the comment of the archive, which torch and unzip ignore. The hash is called
the seal.
"""

import hashlib
import os
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch

from nbsnn.errors import CheckpointError, shown

_MARK = b"nbsnn sha256 "
_SEAL = len(_MARK) + 64  # bytes
_END, _END_SIZE = b"PK\x05\x06", 22  # how the last record of an archive begins; its bytes without the comment
_LONGEST_NAME, _LONGEST_REASON = 80, 300  # characters of a type's name, and of what torch says, in a message


def write_torch(path: Path, content: dict[str, Any]) -> None:
    """`torch.save`, and the seal."""
    torch.save(content, path)
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(_SEAL.to_bytes(2, "little"))  # the length of the comment ends an archive that has none
        file.flush()
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0, os.SEEK_END)
        file.write(_MARK + digest.encode())


def check_seal(path: Path) -> None:
    """Verify the seal of a torch file, if it has one: other files, and those of earlier versions, have none.

    Raises:
        CheckpointError: its bytes do not match the seal.
    """
    size = path.stat().st_size
    if size < _SEAL + _END_SIZE:
        return
    with path.open("rb") as file:
        file.seek(size - _SEAL - _END_SIZE)
        end, seal = file.read(_END_SIZE), file.read()
        if not (seal.startswith(_MARK) or end.startswith(_END)):
            return
        file.seek(0)
        digest, left = hashlib.sha256(), size - _SEAL
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    if seal != _MARK + digest.hexdigest().encode():
        raise CheckpointError(f"{path}: its content does not match its hash; it was altered or damaged, restore it from a copy")


def read_torch(path: Path) -> dict[str, Any]:
    """The dictionary in a torch file, on the CPU: tensors, plain values, NumPy scalars, paths, and `argparse.Namespace`.

    Raises:
        CheckpointError: damaged, not a dictionary, or it holds a type whose loading could execute code; names that type.
    """
    _check_size(path)
    try:
        # torch warns of strange protocols before it refuses them.
        with torch.serialization.safe_globals(_harmless()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling garbage can raise any exception
        raise CheckpointError(_refusal(path, error)) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def _check_size(path: Path) -> None:
    """Raise an error for an archive that unpacks to more than its size: torch.save never compresses.

    Raises:
        CheckpointError: it is such an archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
    except Exception:  # a file of torch before 1.6, or a damaged one: torch reports the problem
        return
    if size > path.stat().st_size:
        raise CheckpointError(f"{path}: would unpack to {size} bytes; save it again with torch.save, which compresses nothing")


def _refusal(path: Path, error: Exception) -> str:
    names = _unknown_types(path, error)
    if names:
        return (
            f"{path}: holds {', '.join(names)}, which could execute code when it is read; if you trust its source, load it "
            "with torch.load(..., weights_only=False) and save its state_dict alone"
        )
    reason = shown(str(error).splitlines()[0] if str(error) else type(error).__name__, longest=_LONGEST_REASON)
    return f"{path}: damaged or not a torch file of plain tensors ({reason}); restore it from a copy"


def _unknown_types(path: Path, error: Exception) -> list[str]:
    """Types and functions in a file that are not allowed; for files of torch before 1.6 only the first."""
    found = re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]
    if found:
        try:
            with torch.serialization.safe_globals(_harmless()):
                found = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) or found
        except Exception:  # another kind of archive, or a damaged one: use the name in the message
            pass
    return [name[:_LONGEST_NAME] for name in found[:3]]


@cache
def _harmless() -> list[tuple[Callable[..., Any], str] | Callable[..., Any]]:
    """Types that training scripts save with tensors and that cannot execute code: accuracies, and the parsed command line."""
    scalar: Any = np.float64(0).__reduce__()[0]
    numbers = [(scalar, f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")]  # of NumPy 1, of NumPy 2
    paths: list[tuple[Callable[..., Any], str]] = [
        (kind, f"{module}.{prefix}{name}")
        for kind, name in ((PurePosixPath, "PosixPath"), (PureWindowsPath, "WindowsPath"))
        for module in ("pathlib", "pathlib._local")  # Python 3.13 names the latter
        for prefix in ("", "Pure")
    ]
    return [*numbers, *paths, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefdgFDGSU"}, Namespace]
