"""The folder of a phase: file names, and a lock for the run that writes there."""

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
PREVIOUS_FILE = "training.previous.safetensors"  # the state before it, in case the newest is damaged
FINISHED_FILE = "finished.safetensors"  # the last state of a phase that ended, until the next phase begins
BEST_FILE = "best.safetensors"  # the network with the best accuracy on the validation images
LAST_FILE = "last.safetensors"  # that of the last epoch so far
_PATIENCE = 8.0  # seconds: worker processes outlive a killed run by five, and hold its lock


def has_unfinished(folder: Path) -> bool:
    """Whether a folder holds an unfinished phase. Between two renames the newest state is missing for a moment."""
    return (folder / STATE_FILE).is_file() or (folder / PREVIOUS_FILE).is_file()


def has_run(folder: Path) -> bool:
    """Whether a folder holds a phase, finished or not."""
    return has_unfinished(folder) or (folder / FINISHED_FILE).is_file() or (folder / LAST_FILE).is_file()


def check_start(folder: Path, start: str | Path | None, *, names: tuple[str, str] = (BEST_FILE, LAST_FILE)) -> None:
    """Raise an error if a run would replace the file that it starts from: after a kill it could not be resumed.

    Args:
        folder: of the phase.
        start: the file that the run starts from, if any.
        names: of the checkpoints.
    Raises:
        ConfigError: the start is one of the run's own files.
    """
    for path in (folder / name for name in (*names, STATE_FILE, PREVIOUS_FILE, FINISHED_FILE)):
        if is_same(path, start):
            raise ConfigError(f"{start}: the run starts from it and would replace it; copy it first, or choose another folder")


def forget_finished(folder: Path) -> None:
    """Remove the last training state of a finished phase."""
    if world().is_main:
        (folder / FINISHED_FILE).unlink(missing_ok=True)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Lock a folder in rank 0 of a run, so that no second run writes there; the folder is created if needed.

    Without support for locks in the file system or the operating system, nothing is locked.

    Raises:
        CheckpointError: another process holds the lock.
    """
    handle = None
    if fcntl is not None and world().is_main:
        with suppress(OSError):  # the writer reports the problem
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
