"""The training state, from which a killed run resumes: weights and their EMA, buffers, momenta, and progress in the phase.

Order and augmentation of the batches depend only on (seed, epoch, batch), so it contains no generator state. Two generations
are saved: if a state is damaged on disk, only the steps since the one before it are lost.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nbsnn.distributed import max_over_ranks, warn
from nbsnn.errors import CheckpointError, ConfigError
from nbsnn.tensorfile import content_hash, read_tensors, write_tensors
from nbsnn.training.conditions import Conditions
from nbsnn.training.ema import WeightEMA
from nbsnn.training.folder import PREVIOUS_FILE, STATE_FILE

logger = logging.getLogger(__name__)

_FORMAT = 1
_MOST_NAMED = 4  # problems in one message


@dataclass
class TrainingState:
    """Progress of a phase: everything besides tensors that determines how it continues."""

    fingerprint: str  # of recipe and phase: a state of another one is not loaded
    epoch: int = 0
    step: int = 0  # finished batches of this epoch
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    best: float = -1.0
    history: list[dict[str, Any]] = field(default_factory=list)
    conditions: Conditions = field(default_factory=dict)  # see `conditions_of`; empty in states of earlier versions
    extended: list[int] = field(default_factory=list)  # numbers of epochs after which the phase had ended and was given more

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
        """Start after `epochs` epochs with this log."""
        self.epoch, self.history = epoch, history
        self.best = max((row["top1"] for row in history), default=self.best)

    def next_epoch(self) -> None:
        """Reset the counts for the next epoch."""
        self.epoch, self.step, self.loss_sum, self.correct, self.seen = self.epoch + 1, 0, 0.0, 0, 0


class OtherRun(CheckpointError):
    """A valid training state of a run with other settings."""


class Learner(NamedTuple):
    """The objects that a training state is saved from and loaded into."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: WeightEMA | None = None


class Expected(NamedTuple):
    """Expected properties of a training state: its fingerprint, epochs of the phase and steps of an epoch."""

    fingerprint: str
    epochs: int
    steps: int


class Saved(NamedTuple):
    """A training state that was read and checked, and not loaded yet."""

    path: Path
    state: TrainingState
    tensors: dict[str, Tensor]


def fingerprint(network: nn.Module) -> str:
    """12-digit hash of a network's weights with two or more dimensions, which calibration does not change."""
    return content_hash({}, {key: value for key, value in network.state_dict().items() if value.dim() > 1})[:12]


# ------------------------------------------------------------------------------------------------------------- writing


def save_state(folder: Path, state: TrainingState, learner: Learner) -> None:
    """Write the training state atomically; the one before it is renamed."""
    momenta = _momenta(learner)
    tensors: dict[str, Tensor] = {f"model.{key}": value for key, value in learner.model.state_dict().items()}
    tensors |= {f"momentum.{key}": value for key, value in momenta.items()}
    if learner.ema:
        tensors |= {f"average.{key}": value for key, value in learner.ema.state().items()}
    header = {"format": _FORMAT, **asdict(state), "momenta": len(momenta)}
    write_tensors(folder / STATE_FILE, tensors, header, keep=folder / PREVIOUS_FILE)


def _momenta(learner: Learner) -> dict[str, Tensor]:
    """The optimizer's momenta by parameter; a parameter without a gradient has none."""
    buffers = {key: learner.optimizer.state.get(p, {}).get("momentum_buffer") for key, p in learner.model.named_parameters()}
    return {key: buffer for key, buffer in buffers.items() if buffer is not None}


# ------------------------------------------------------------------------------------------------------------- reading


def newest_state(folder: Path, learner: Learner, expected: Expected) -> Saved | None:
    """The newest valid training state in a folder, the same one in every process; None if there is none.

    Raises:
        OtherRun: the state is of other settings than expected.
        CheckpointError: all of them are damaged.
        ConfigError: the processes do not see the same files.
    """
    paths = [folder / STATE_FILE, folder / PREVIOUS_FILE]
    here = torch.tensor([path.is_file() for path in paths], dtype=torch.int64)
    if not max_over_ranks(here).equal(-max_over_ranks(-here)):
        raise ConfigError(f"{folder}: not all processes see the same files there; choose a folder that all machines share")
    problem = ""
    for path in [path for path, there in zip(paths, here.tolist(), strict=True) if there]:
        try:
            found, said = read_state(path, learner, expected), ""
        except OtherRun:
            raise
        except CheckpointError as error:
            found, said = None, str(error)
        if max_over_ranks(torch.tensor(int(found is None))) == 0 and found is not None:
            if problem:
                warn(logger, "%s; resuming from the state before it, epoch %d after step %d",
                               problem, found.state.epoch + 1, found.state.step)  # fmt: skip
            return found
        problem = problem or said or f"{path}: another process cannot read it"
    if problem:
        raise CheckpointError(f"{problem}, or train the phase from the start (overwrite=True)")
    return None


def read_state(path: Path, learner: Learner, expected: Expected) -> Saved:
    """Read a training state and compare it with the run.

    Raises:
        OtherRun: it has other settings than expected.
        CheckpointError: damaged, or not of this network, its optimizer and its EMA.
    """
    header, tensors = read_tensors(path)
    if "fingerprint" not in header:
        raise CheckpointError(f"{path}: holds a network, not a training state; restore it from a copy")
    if header["fingerprint"] != expected.fingerprint:
        raise OtherRun(
            f"{path.parent} holds an unfinished run of another recipe, or of the same with another start or teacher; "
            "choose another folder, or overwrite it (overwrite=True)"
        )
    known = {f.name for f in fields(TrainingState)}
    state = TrainingState(**{key: value for key, value in header.items() if key in known})
    problems = [*_impossible(state, expected), *_misfits(tensors, learner)]
    found = len(_under("momentum.", tensors))
    noted = header.get("momenta", found)  # earlier versions did not store their number
    first = state.conditions.get("first epoch", str(state.epoch))
    moved = (state.step > 0 or str(state.epoch) != first) and learner.optimizer.defaults["momentum"] > 0
    if found != noted or (moved and not found):
        problems.append(f"{found} momenta instead of {noted or 'one for each parameter'}")
    if problems:
        raise CheckpointError(f"{path}: not a state of this run: {'; '.join(problems[:_MOST_NAMED])}; restore it from a copy")
    return Saved(path, state, tensors)


def give_back_(saved: Saved, learner: Learner) -> None:
    """Load a training state into network, optimizer and EMA."""
    learner.model.load_state_dict(_under("model.", saved.tensors))
    if learner.ema:
        learner.ema.restore_(_under("average.", saved.tensors))
    momenta = _under("momentum.", saved.tensors)
    for key, parameter in learner.model.named_parameters():
        if key in momenta:
            buffer = momenta[key].to(parameter.device)
            learner.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)


def _impossible(state: TrainingState, expected: Expected) -> Iterator[str]:
    """Problems of numbers that no run can reach."""
    if state.epoch > expected.epochs or state.step > expected.steps or (state.step and state.epoch == expected.epochs):
        yield f"epoch {state.epoch}, step {state.step} of {expected.epochs} epochs of {expected.steps} steps"
    if state.correct > state.seen or (state.step == 0) != (state.seen == 0):
        yield f"{state.correct} hits among {state.seen} images in {state.step} steps"
    epochs = [row["epoch"] for row in state.history]
    if epochs != sorted(set(epochs)) or max(epochs, default=0) > state.epoch:
        yield f"a history of the epochs {epochs[-5:]} after {state.epoch} epochs"


def _misfits(tensors: Mapping[str, Tensor], learner: Learner) -> Iterator[str]:
    """Problems of tensors that do not fit the network, its optimizer and its EMA."""
    model = {f"model.{key}": value for key, value in learner.model.state_dict().items()}
    average = {f"average.{key}": value for key, value in (learner.ema.state() if learner.ema else {}).items()}
    known = {f"momentum.{key}": value for key, value in learner.model.named_parameters()}
    yield from (f"{key} is missing" for key in (*model, *average) if key not in tensors)
    for key, given in tensors.items():
        wanted = model.get(key, average.get(key, known.get(key)))
        if wanted is None:
            yield f"{key} is not expected"
        elif given.shape != wanted.shape or given.dtype != wanted.dtype:
            yield f"{key} is {given.dtype} {list(given.shape)} instead of {wanted.dtype} {list(wanted.shape)}"


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
