"""What a training run tells the outside, and how it ends early."""

from dataclasses import dataclass

from nbsnn.training.execution import Execution


@dataclass(frozen=True)
class Epoch:
    """One line of the log. Accuracies in percent; `top1` is on the validation images."""

    epoch: int
    loss: float
    train_top1: float
    top1: float
    lr: float
    seconds: float
    images_per_second: float


class Observer:
    """What a training run tells the outside; every method may be overridden."""

    def on_phase(self, title: str, epochs: int, steps: int, execution: Execution) -> None:
        """A phase begins: `steps` batches in each of its `epochs`, run as `execution` says."""

    def on_resume(self, epoch: int, step: int) -> None:
        """The phase goes on from a training state: `epoch` epochs and `step` steps of the next one are done."""

    def on_step(self, epoch: int, step: int, loss: float, top1: float, images: int) -> None:
        """A batch of `images` was trained on; loss and accuracy are of the epoch so far."""

    def on_epoch(self, row: Epoch) -> None:
        """An epoch ended."""

    def should_stop(self) -> bool:
        """Asked after each step; True saves the training state and raises `Interrupted`."""
        return False
