"""A live table below the progress bar of a training run: the course of loss and accuracy, and the activity of each layer."""

from collections.abc import Sequence
from typing import Any

from nbsnn.console import below_the_bar, figures_bar, fitting_rows, note, screen
from nbsnn.training.activity import LayerActivity, activity_line
from nbsnn.training.execution import Execution
from nbsnn.training.observer import Epoch
from nbsnn.training_console import TrainingConsole

_COLUMNS = ("layer", "threshold", "rate", "clipped %", "dead channels %")


class Dashboard(TrainingConsole):
    """`TrainingConsole` with a table of the layers; where standard error is no terminal, one more line per epoch.

    Where the terminal is too small for all layers, it shows those with most clipped currents and dead channels.
    """

    wants_activity = True

    def __init__(self, *, every: int = 0) -> None:
        super().__init__(every=every)
        self._bar = figures_bar(self._below)
        self._rows: list[Epoch] = []
        self._layers: Sequence[LayerActivity] = ()

    def on_phase(self, title: str, epochs: int, steps: int, execution: Execution) -> None:
        self._rows, self._layers = [], ()
        super().on_phase(title, epochs, steps, execution)

    def on_activity(self, epoch: int, layers: Sequence[LayerActivity]) -> None:
        self._layers = layers

    def on_epoch(self, row: Epoch) -> None:
        super().on_epoch(row)
        self._rows.append(row)
        if self._layers and not screen.err.is_terminal:
            note(f"{self._title}: epoch {row.epoch}/{self._epochs}  {activity_line(self._layers)}")

    def _below(self) -> Any:
        course = [
            ("loss", [row.loss for row in self._rows], "{:.4f}"),
            ("validation", [row.top1 for row in self._rows], "{:.2f} %"),
        ]
        return below_the_bar(course, fitting_rows(self._table(), _COLUMNS) if self._layers else None)

    def _table(self) -> list[tuple[float, tuple[str, ...]]]:
        return [
            (x.clipped + x.dead,
             (x.name, f"{x.threshold:.3g}", f"{x.rate:.3f}", f"{100 * x.clipped:.1f}", f"{100 * x.dead:.1f}"))
            for x in self._layers
        ]  # fmt: skip
