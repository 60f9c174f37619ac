"""What a killed run goes on from: weights and their average, buffers, momenta, and where in the phase it stood.

Order and augmentation of the batches follow from (seed, epoch, batch) alone, so no generator's state is part of it.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.distributed import world
from nbsnn.errors import CheckpointError
from nbsnn.tensorfile import content_hash, read_tensors, write_tensors
from nbsnn.training.average import WeightAverage

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STATE_FILE = "training.safetensors"  # of an unfinished phase; gone when it ends
BEST_FILE = "best.safetensors"  # the network that did best on the validation images
LAST_FILE = "last.safetensors"  # that of the last epoch so far
_FORMAT = 1
_PATIENCE = 8.0  # seconds: loading processes outlive a killed run by five, and hold what it held


@dataclass
class TrainingState:
    """Where a phase stands: everything beside tensors that decides what comes next."""

    fingerprint: str  # of recipe and phase: a state of another one is not taken up
    epoch: int = 0
    step: int = 0  # batches of this epoch that are done
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    best: float = -1.0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def running(self) -> tuple[float, float]:
        """Mean loss and accuracy in percent of the epoch so far."""
        return self.loss_sum / max(self.seen, 1), 100 * self.correct / max(self.seen, 1)

    def count(self, loss: float, correct: int, images: int) -> None:
        """Add a batch."""
        self.step += 1
        self.loss_sum += loss * images
        self.correct += correct
        self.seen += images

    def begin(self, epoch: int, history: list[dict[str, Any]]) -> None:
        """Start after so many epochs, of which this is known."""
        self.epoch, self.history = epoch, history
        self.best = max((row["top1"] for row in history), default=self.best)

    def next_epoch(self) -> None:
        """Start counting anew."""
        self.epoch, self.step, self.loss_sum, self.correct, self.seen = self.epoch + 1, 0, 0.0, 0, 0


def identity(network: nn.Module) -> str:
    """Twelve hexadecimal digits of a network's weights of two and more dimensions, which no calibration touches."""
    return content_hash({}, {key: value for key, value in network.state_dict().items() if value.dim() > 1})[:12]


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


def has_state(folder: Path) -> bool:
    """Whether a phase began in a folder, finished or not."""
    return (folder / STATE_FILE).is_file() or (folder / LAST_FILE).is_file()


def save_state(
    folder: Path, state: TrainingState, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> None:
    """Write the training state, whole or not at all."""
    tensors: dict[str, Tensor] = {f"model.{key}": value for key, value in model.state_dict().items()}
    for key, parameter in model.named_parameters():
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum.{key}"] = buffer
    if average:
        tensors |= {f"average.{key}": value for key, value in average.state().items()}
    write_tensors(folder / STATE_FILE, tensors, {"format": _FORMAT, **asdict(state)})


def restore_state_(
    folder: Path, state: TrainingState, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> TrainingState | None:
    """Take up the training state in a folder, if there is one: fills model, optimizer and average, and returns it.

    Raises:
        CheckpointError: damaged, or of another recipe than `state`'s fingerprint says.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    header, tensors = read_tensors(path)
    header = {key: value for key, value in header.items() if key not in ("format", "content_hash")}
    if header["fingerprint"] != state.fingerprint:
        raise CheckpointError(
            f"{folder} holds an unfinished run of another recipe, or of the same with another start or teacher; "
            "choose another folder, or overwrite it (--overwrite)"
        )
    model.load_state_dict(_under("model.", tensors))
    if average:
        average.restore_(_under("average.", tensors))
    for key, parameter in model.named_parameters():
        if f"momentum.{key}" in tensors:
            buffer = tensors[f"momentum.{key}"].to(parameter.device)
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)
    return TrainingState(**header)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
