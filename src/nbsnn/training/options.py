"""How and where a phase or a whole run is trained: frozen, and no part of a recipe."""

from dataclasses import dataclass, field

import torch

from nbsnn.errors import ConfigError
from nbsnn.settings import require
from nbsnn.training.execution import Execution, check_choices, pick_execution
from nbsnn.training.folder import BEST_FILE, LAST_FILE

SAVE_EVERY = 60.0  # seconds between training states within an epoch


@dataclass(frozen=True)
class FitOptions:
    """How `fit` trains one phase.

    Args:
        device: where the network is trained.
        execution: compiled or eager, replayed as a CUDA graph or not, and the type of the forward pass.
        save_every: seconds between training states within an epoch; 0 saves after each step.
        overwrite: start from scratch where the folder holds results already.
        first_epoch: epochs that count as done when the phase starts from scratch; the log that the folder has of them stays.
        names: of the files for the best and the last epoch.
        start: fingerprint of the network that the run began with (`nbsnn.training.state.fingerprint`), empty for fresh weights;
            a run that began with another one is not resumed.
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
    """How `train` runs a recipe's phases.

    Args:
        device: where networks are trained.
        compile: whether steps are compiled: "on", "off", or "auto", which decides by device and length of a phase.
        precision: of the forward pass: "float32", "bf16", or "auto", which takes bfloat16 where the hardware multiplies it.
        save_every: seconds between training states within an epoch.
        overwrite: train from scratch where there are results already.
        resume: fail if there is no run to resume; one that is there is resumed in any case.
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
        """How steps run in a phase that trains on so many images in all."""
        return pick_execution(torch.device(self.device), images, compile=self.compile, precision=self.precision)
