"""The folder of a phase: the names of its files, and the one run that may write there."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nbsnn.distributed import world
from nbsnn.errors import CheckpointError, ConfigError
from nbsnn.outputs import is_same

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STATE_FILE = "training.safetensors"  # of an unfinished phase
PREVIOUS_FILE = "training.previous.safetensors"  # the state before it, for the case that the newest is damaged
FINISHED_FILE = "finished.safetensors"  # the last state of a phase that ended, until the next phase begins
BEST_FILE = "best.safetensors"  # the network that did best on the validation images
LAST_FILE = "last.safetensors"  # that of the last epoch so far
_PATIENCE = 8.0  # seconds: loading processes outlive a killed run by five, and hold what it held


def has_unfinished(folder: Path) -> bool:
    """Whether a phase began in a folder and did not end. Between two renames the newest state is not there for a moment."""
    return (folder / STATE_FILE).is_file() or (folder / PREVIOUS_FILE).is_file()


def has_run(folder: Path) -> bool:
    """Whether a phase began in a folder, finished or not."""
    return has_unfinished(folder) or (folder / FINISHED_FILE).is_file() or (folder / LAST_FILE).is_file()


def check_start(folder: Path, start: str | Path | None, *, names: tuple[str, str] = (BEST_FILE, LAST_FILE)) -> None:
    """Refuse to begin a run in a folder with a file that the run replaces: if it was killed, it could not be resumed.

    Args:
        folder: of the phase.
        start: the file that the run begins with, if any.
        names: of the checkpoints.
    Raises:
        ConfigError: the start is one of the run's own files.
    """
    for path in (folder / name for name in (*names, STATE_FILE, PREVIOUS_FILE, FINISHED_FILE)):
        if is_same(path, start):
            raise ConfigError(f"{start}: the run begins with it and would replace it; copy it first, or choose another folder")


def forget_finished(folder: Path) -> None:
    """Remove the last training state of a finished phase."""
    if world().is_main:
        (folder / FINISHED_FILE).unlink(missing_ok=True)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a folder, as the main process of a run, so that no second run writes there; it is made if need be.

    Nothing is held where the file system or the operating system knows no locks.

    Raises:
        CheckpointError: another process holds it.
    """
    handle = None
    if fcntl is not None and world().is_main:
        with suppress(OSError):  # who writes there says what is wrong with it
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY)
    try:
        if handle is not None:
            _lock(handle, folder)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise CheckpointError(f"{folder}: another process trains there; let it end, or choose another folder") from None
            time.sleep(0.25)
        except OSError:
            return
