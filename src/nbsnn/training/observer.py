"""Callbacks of a training run, one of which can stop it."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from nbsnn.training.activity import LayerActivity
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
    """Callbacks of a training run; override any method."""

    wants_activity = False  # True measures activations after each epoch, for on_activity

    def on_phase(self, title: str, epochs: int, steps: int, execution: Execution) -> None:
        """A phase begins: `steps` batches in each of its `epochs`, run with `execution`."""

    def on_resume(self, epoch: int, step: int) -> None:
        """The phase resumes from a training state: `epoch` epochs and `step` steps of the next one are done."""

    def on_step(self, epoch: int, step: int, loss: float, top1: float, images: int) -> None:
        """A batch of `images` was trained on; loss and accuracy are of the epoch so far."""

    def on_network(self, epoch: int, network: nn.Module) -> None:
        """The network after `epoch` epochs, as in its checkpoint; do not change it."""

    def on_activity(self, epoch: int, layers: Sequence[LayerActivity]) -> None:
        """Activity of the quantized activations after `epoch` epochs, on some validation images."""

    def on_epoch(self, row: Epoch) -> None:
        """An epoch ended."""

    def should_stop(self) -> bool:
        """Called after each step; True saves the training state and raises `Interrupted`."""
        return False

    def close(self) -> None:
        """The run has ended, with or without an error; called by the creator of the observer."""


class Observers(Observer):
    """Several observers as one; the run stops if any of them requests it."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers
        self.wants_activity = any(observer.wants_activity for observer in observers)

    def on_phase(self, title: str, epochs: int, steps: int, execution: Execution) -> None:
        for observer in self.observers:
            observer.on_phase(title, epochs, steps, execution)

    def on_resume(self, epoch: int, step: int) -> None:
        for observer in self.observers:
            observer.on_resume(epoch, step)

    def on_step(self, epoch: int, step: int, loss: float, top1: float, images: int) -> None:
        for observer in self.observers:
            observer.on_step(epoch, step, loss, top1, images)

    def on_network(self, epoch: int, network: nn.Module) -> None:
        for observer in self.observers:
            observer.on_network(epoch, network)

    def on_activity(self, epoch: int, layers: Sequence[LayerActivity]) -> None:
        for observer in self.observers:
            observer.on_activity(epoch, layers)

    def on_epoch(self, row: Epoch) -> None:
        for observer in self.observers:
            observer.on_epoch(row)

    def should_stop(self) -> bool:
        return max(observer.should_stop() for observer in self.observers)  # calls each

    def close(self) -> None:
        for observer in self.observers:
            observer.close()
