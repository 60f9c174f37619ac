"""Atomic writes, and errors for names that cannot be read or written."""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nbsnn.errors import CheckpointError

_KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)  # fmt: skip
_REMEDIES = {
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)", errno.ENFILE: "close other programs",
    errno.EACCES: "choose another folder", errno.EPERM: "choose another folder", errno.EROFS: "choose another folder",
    errno.ENOTDIR: "a file has the name of its folder, choose another folder",
    errno.EISDIR: "a folder has the name of a file, rename that folder",
    errno.ENOTEMPTY: "a folder has the name of a file, rename that folder",
    errno.EEXIST: "a file has the name of its folder, choose another folder",
}  # fmt: skip
_LONGEST_STEM = 180  # bytes of a name that its temporary name repeats; a name has 255 at most


def special_kind(path: Path) -> str | None:
    """The kind of a path that exists and is not a regular file: "a folder", "a FIFO", "a device", "a socket"; else None."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    return next((name for test, name in _KINDS if test(mode)), None)


def check_readable(path: Path, what: str = "checkpoint file") -> None:
    """Fail unless `path` is a regular file: reading from a FIFO would block forever.

    Raises:
        CheckpointError: the path does not exist, or is not a regular file.
    """
    if kind := special_kind(path):
        raise CheckpointError(f"{path}: is {kind}, not a {what}; name the file itself")
    try:
        path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path}: no such {what}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({_reason(error)}); name another file") from None


def check_writable(path: Path) -> None:
    """Fail if no file can be written at `path`, as far as that can be checked without writing one.

    Raises:
        CheckpointError: no file can have that name, or its folder cannot be written.
    """
    try:
        path.lstat()
        return
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot write {path}: {_reason(error)}; {_remedy(error)}") from None
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CheckpointError(f"cannot write {path}: {folder} may not be written; choose another folder")


def write_atomically(path: Path, write: Callable[[Path], Any], *, keep: Path | None = None) -> None:
    """Write a file under a temporary name in the same folder, sync it, and rename it; the folder is created if needed.

    If the process is killed, either the old file or the complete new file is there.

    Args:
        path: the file.
        write: called with a path to write the content to.
        keep: path to move the existing file to; unless given, it is replaced.
    Raises:
        CheckpointError: the folder cannot be written, the disk is full, or no file can have that name.
    """
    if kind := special_kind(path):
        raise CheckpointError(f"cannot write {path}: it is {kind}; choose another name")
    if "\0" in str(path):
        raise CheckpointError(f"cannot write {str(path)!r}: no file name holds a NUL; choose another name")
    stem = os.fsdecode(os.fsencode(path.name)[:_LONGEST_STEM])
    part = path.with_name(f".{stem}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode  # what the user's mask allows; safetensors would make the file private
        write(part)
        part.chmod(mode)
        _sync(part)
        if keep is not None:
            with suppress(FileNotFoundError):
                os.replace(path, keep)
        os.replace(part, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"cannot write {path}: {_reason(error)}; {_remedy(error)}") from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed writers in a folder."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename durable across a power failure, on file systems that support syncing a folder."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _reason(error: Exception) -> str:
    lines = (getattr(error, "strerror", None) or str(error)).splitlines()
    return lines[0] if lines else type(error).__name__


def _remedy(error: Exception) -> str:
    return known_remedy(error) or "free some space or choose another folder"


def known_remedy(error: Exception) -> str | None:
    """What to do about an error of the file system; None if that depends on what was done."""
    return _REMEDIES.get(getattr(error, "errno", None) or 0)
