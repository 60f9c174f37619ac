"""Options of how and where a phase or a whole run is trained; frozen, and not part of a recipe."""

from dataclasses import dataclass, field

import torch

from nbsnn.errors import ConfigError
from nbsnn.settings import require
from nbsnn.training.execution import Execution, check_choices, pick_execution
from nbsnn.training.folder import BEST_FILE, LAST_FILE

SAVE_EVERY = 60.0  # seconds between training states within an epoch


@dataclass(frozen=True)
class FitOptions:
    """Options of `fit`.

    Args:
        device: of the network in training.
        execution: compiled or eager, replayed as a CUDA graph or not, and the type of the forward pass.
        save_every: seconds between training states within an epoch; 0 saves after each step.
        overwrite: start from scratch even if the folder holds results.
        first_epoch: epochs that are skipped when the phase starts from scratch; the folder's log of them is kept.
        names: file names for the best and the last epoch.
        start: fingerprint of the network that the run started from (`nbsnn.training.state.fingerprint`), empty for fresh
            weights; a run with another start is not resumed.
        title: for the observer.
    """

    device: torch.device | str = "cpu"
    execution: Execution = field(default_factory=Execution)
    save_every: float = SAVE_EVERY
    overwrite: bool = False
    first_epoch: int = 0
    names: tuple[str, str] = (BEST_FILE, LAST_FILE)
    start: str = ""
    title: str = "training"

    def __post_init__(self) -> None:
        require(self.save_every >= 0, "save_every", self.save_every, "0 (after each step) or a number of seconds")
        require(self.first_epoch >= 0, "first_epoch", self.first_epoch, "0 or more")


@dataclass(frozen=True)
class TrainOptions:
    """Options of `train`.

    Args:
        device: of networks in training.
        compile: whether steps are compiled: "on", "off", or "auto", which depends on the device and the length of a phase.
        precision: of the forward pass: "float32", "bf16", or "auto", which uses bfloat16 if the hardware supports it.
        save_every: seconds between training states within an epoch.
        overwrite: train from scratch even if there are results.
        resume: fail if there is no run to resume; an existing run is resumed with any value.
    """

    device: torch.device | str = "cpu"
    compile: str = "auto"
    precision: str = "auto"
    save_every: float = SAVE_EVERY
    overwrite: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        require(self.save_every >= 0, "save_every", self.save_every, "0 (after each step) or a number of seconds")
        if self.resume and self.overwrite:
            raise ConfigError("resume=True continues a run and overwrite=True starts it from scratch; give one of the two")
        check_choices(self.compile, self.precision)

    def execution(self, images: int) -> Execution:
        """The execution for a phase that trains on `images` images in total."""
        return pick_execution(torch.device(self.device), images, compile=self.compile, precision=self.precision)
