"""Files and folders on disk; a path that is not a regular file is reported, since reading a pipe or a device would block."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nbsnn.errors import DataError

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe (FIFO)", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip
# Files of operating systems and tools; names in lower case. Names that begin with a dot are hidden too.
_HIDDEN = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found",
     "@eadir", "#recycle", "__pycache__"}
)  # fmt: skip


def why_no_file(path: Path) -> str | None:
    """Why a path cannot be read as a file, such as "it is a named pipe (FIFO)"; None for a regular file."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"{error.strerror}"
    except ValueError as error:  # a null byte in the name
        return str(error)
    return None if stat.S_ISREG(mode) else f"it is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}"


def printable(path: object) -> str:
    """A name for a message of one line, with control characters and bytes that are not UTF-8 escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(path))


@dataclass
class Listing:
    """The content of a folder, sorted by name, without hidden entries. `others` are neither files nor folders."""

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def list_folder(folder: Path) -> Listing:
    """The names in a folder. Links are resolved; broken and circular ones are in `others`.

    Raises:
        DataError: the folder cannot be read.
    """
    found = Listing()
    for entry in _entries(folder):
        if entry.name.startswith(".") or entry.name.lower() in _HIDDEN:
            continue
        try:
            names = found.files if entry.is_file() else found.folders if entry.is_dir() else found.others
        except OSError:  # links in a circle
            names = found.others
        names.append(entry.name)
    return found


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{printable(folder)}: cannot be read ({error.strerror}); check its permissions") from None
