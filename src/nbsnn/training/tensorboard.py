"""Write a training run for TensorBoard: loss, accuracy, learning rate, and each layer's threshold, scale and activity."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nbsnn.errors import MissingDependencyError
from nbsnn.training.activity import LayerActivity
from nbsnn.training.execution import Execution
from nbsnn.training.observer import Epoch, Observer

_LEARNED = {"threshold": "threshold", "weight_scale": "weight scale"}  # scalars of a layer, by parameter


class TensorBoard(Observer):
    """Writes metrics of a run to event files, one folder per phase; steps count batches.

    Args:
        folder: parent of the phases' folders; `tensorboard --logdir FOLDER` shows them side by side.
        every: batches between two values of the loss within an epoch.
    Raises:
        MissingDependencyError: tensorboard is not installed.
    """

    wants_activity = True

    def __init__(self, folder: Path, *, every: int = 50) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingDependencyError("tensorboard", extra="tensorboard", purpose="writing TensorBoard's files") from None
        self._open, self.folder, self.every = SummaryWriter, folder, every
        self._writer: Any = None
        self._phase, self._steps, self._done = "", 0, 0  # folder's name, batches of an epoch, batches before

    def on_phase(self, title: str, epochs: int, steps: int, execution: Execution) -> None:
        self.close()
        self._phase, self._steps, self._done = title.replace(" ", "-"), steps, 0

    def on_resume(self, epoch: int, step: int) -> None:
        self._done = epoch * self._steps + step

    def _add(self, name: str, value: float, step: int) -> None:
        if self._writer is None:  # values that an earlier run wrote for these batches are hidden
            self._writer = self._open(str(self.folder / self._phase), purge_step=self._done + 1)
        self._writer.add_scalar(name, value, step)

    def on_step(self, epoch: int, step: int, loss: float, top1: float, images: int) -> None:
        if step % self.every == 0:
            self._add("loss/so far in the epoch", loss, epoch * self._steps + step)

    def on_network(self, epoch: int, network: nn.Module) -> None:
        for name, parameter in network.named_parameters():
            layer, _, kind = name.rpartition(".")
            if kind in _LEARNED and parameter.numel() == 1:
                self._add(f"{_LEARNED[kind]}/{layer}", float(parameter.detach()), epoch * self._steps)

    def on_activity(self, epoch: int, layers: Sequence[LayerActivity]) -> None:
        for layer in layers:
            figures = {"rate": layer.rate, "clipped %": 100 * layer.clipped, "dead channels %": 100 * layer.dead}
            for name, value in figures.items():
                self._add(f"{name}/{layer.name}", value, epoch * self._steps)

    def on_epoch(self, row: Epoch) -> None:
        figures = {
            "loss/epoch": row.loss, "top-1 %/training": row.train_top1, "top-1 %/validation": row.top1, "learning rate": row.lr,
            "images per second": row.images_per_second,
        }  # fmt: skip
        for name, value in figures.items():
            self._add(name, value, row.epoch * self._steps)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
