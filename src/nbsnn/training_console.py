"""Console output of a training run: a progress bar, a line per epoch, and Ctrl-C, which stops and saves the state."""

import signal
from types import FrameType
from typing import Any

from nbsnn.console import as_fit, figures_bar, note
from nbsnn.training.execution import Execution
from nbsnn.training.observer import Epoch, Observer


def _signals() -> list[signal.Signals]:
    """The signals that stop a run."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # Windows has none
        numbers.append(signal.SIGHUP)
    return numbers


class TrainingConsole(Observer):
    """Progress bar and lines of a training run; an interrupt, SIGTERM or SIGHUP stops it after the current step.

    SIGHUP, which a terminal sends when it closes, has no effect if it is ignored, as under `nohup`. A line is also printed
    every `every` steps; 0 for none.
    """

    def __init__(self, *, every: int = 0) -> None:
        self.every = every
        self._bar = figures_bar()
        self._task: Any = None  # the bar's task for the current phase
        self._epochs = self.steps = 0
        self._stop = False
        self._title = ""

    def __enter__(self) -> "TrainingConsole":
        self._before = {s: signal.signal(s, self._interrupt) for s in _signals()}
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._stop = True
        note("stopping after this step; repeat to stop immediately; the run can be resumed from the last training state")
        signal.signal(number, self._before[signal.Signals(number)])

    def should_stop(self) -> bool:
        return self._stop

    def on_phase(self, title: str, epochs: int, steps: int, execution: Execution) -> None:
        note(f"{title}: {epochs} epochs of {steps} steps, {execution}")
        first = "compiling the training step, which takes a minute or so" if execution.compiled else "the first step"
        if execution.compiled:
            note(f"{title}: {first}")
        self._title, self._epochs, self.steps = title, epochs, steps
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(title, total=epochs * steps, figures=first)

    def on_resume(self, epoch: int, step: int) -> None:
        note(f"{self._title}: resuming from the training state in epoch {epoch + 1}, after step {step}")

    def on_step(self, epoch: int, step: int, loss: float, top1: float, images: int) -> None:
        if self.every and step % self.every == 0:
            note(f"epoch {epoch + 1} batch {step}/{self.steps}  loss {loss:.4f}  train {top1:.2f} %")
        if self._task is None:
            return
        self._bar.update(self._task, completed=epoch * self.steps + step)
        speed = self._bar.tasks[-1].speed or 0.0
        figures = f"epoch {epoch + 1}/{self._epochs}|loss {loss:.3f}|top-1 {top1:.1f} %|{speed * images:.0f} images/s"
        self._bar.update(self._task, figures=as_fit(self._title, figures.split("|")))

    def on_epoch(self, row: Epoch) -> None:
        note(
            f"{self._title}: epoch {row.epoch}/{self._epochs}  loss {row.loss:.4f}  train {row.train_top1:.2f} %  "
            f"validation {row.top1:.2f} %  lr {row.lr:.2g}  {row.images_per_second:.0f} images/s"
        )
