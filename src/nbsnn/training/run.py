"""A phase in training: the steps of the loop in `fit`."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from nbsnn.data.images import Batches, Splits, evaluation_batches
from nbsnn.distributed import broadcast_buffers_, is_revived, sum_over_ranks, wait_for_all, world
from nbsnn.errors import DivergedError, Interrupted
from nbsnn.evaluation.accuracy import evaluate
from nbsnn.files import remove_leftovers
from nbsnn.finite import check_network
from nbsnn.norms import freeze_norms_, recalibrate_norms_
from nbsnn.recipe import Phase, Recipe
from nbsnn.training.activity import IMAGES, measure_activity
from nbsnn.training.checks import check_same_folder, training_batches
from nbsnn.training.conditions import conditions_of
from nbsnn.training.folder import STATE_FILE, has_unfinished
from nbsnn.training.history import FitResult, read_history, result_of
from nbsnn.training.loss import Loss
from nbsnn.training.observer import Epoch, Observer
from nbsnn.training.optim import learning_rate
from nbsnn.training.options import FitOptions
from nbsnn.training.records import Records
from nbsnn.training.state import Learner, TrainingState
from nbsnn.training.step import Step


def _steps_at_once(device: torch.device) -> int:
    """Steps between reads of metrics from the device, so that a GPU is rarely synchronized; with several processes, 1."""
    return 16 if device.type == "cuda" and world().size == 1 else 1


class Run:
    """A phase in training; see `fit` for the arguments."""

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        recipe: Recipe,
        phase: Phase,
        out: Path,
        options: FitOptions,
        observer: Observer,
        teacher: nn.Module | None,
    ) -> None:
        self.model = model.to(options.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        device = next(model.parameters()).device
        self.train, self.validation = splits.train.to(device), splits.validation.to(device)
        self.recipe, self.phase, self.options, self.observer = recipe, phase, options, observer
        self.steps = len(self._batches(0))  # per epoch
        execution, batch = options.execution, recipe.data.batch_size
        loss = Loss(recipe.optim, phase, execution, teacher, device)
        self.step = Step(self.model, spec=recipe.optim, phase=phase, execution=execution, loss=loss, batch=batch)
        self.records = Records(
            out, options.names, Learner(self.model, self.step.optimizer, self.step.ema), recipe, phase,
            steps=self.steps, start=options.start, taught=loss.fingerprint,
        )  # fmt: skip
        self.conditions = conditions_of(splits, execution, device) | {"first epoch": str(options.first_epoch)}
        self.waiting: list[tuple[Tensor, int, bool]] = []  # steps to count: metrics, images, whether to stop
        self.at_once = _steps_at_once(device)
        self.saved_at = time.monotonic()
        self.epoch_began, self.seen_before = 0.0, 0
        self.remedy = "run the same command to resume"

    @property
    def state(self) -> TrainingState:
        """Progress of the phase."""
        return self.records.state

    def _batches(self, epoch: int) -> Batches:
        return training_batches(self.train, self.recipe, epoch)

    # ----------------------------------------------------------------------------------------------- before the first epoch

    def start_or_resume_(self) -> None:
        """Load the training state in the folder, if there is one and it may be used, and write one."""
        records, first = self.records, self.options.first_epoch
        if world().is_main:
            remove_leftovers(records.out)
        if first:
            records.state.begin(first, read_history(records.out, until=first))
        # A process restarted by torchrun resumes its run, also with overwrite.
        if self.options.overwrite and not (is_revived() and has_unfinished(records.out)):
            records.forget()
            self.remedy = "run it again without overwriting (overwrite=False) to resume"
        else:
            records.restore_(self.conditions)
        records.state.conditions = self.conditions
        wait_for_all()  # no process writes while others still read
        self.save_()  # an unwritable folder is an error now, not after an epoch
        check_same_folder(records.out / STATE_FILE, self.state)
        self.observer.on_phase(self.options.title, self.phase.epochs, self.steps, self.options.execution)
        if self.state.epoch > first or self.state.step:
            self.observer.on_resume(self.state.epoch, self.state.step)

    def epochs_left(self) -> Iterator[int]:
        """The remaining epochs, counted from 0."""
        while self.state.epoch < self.phase.epochs:
            yield self.state.epoch

    # --------------------------------------------------------------------------------------------------------- in an epoch

    def begin_epoch_(self) -> None:
        """Training mode; frozen norms stay in evaluation mode."""
        self.model.train()
        if self.recipe.optim.freeze_norms:
            freeze_norms_(self.model)
        self.epoch_began, self.seen_before = time.perf_counter(), self.state.seen

    def batches_left(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, C, H, W] and labels [B] of the remaining batches of this epoch; a process's share of each."""
        return self._batches(self.state.epoch).starting_at(self.state.step)

    def train_batch_(self, images: Tensor, labels: Tensor) -> bool:
        """Train on a batch; returns whether any process was asked to stop."""
        lr = self._learning_rate(self.state.step + len(self.waiting))
        sums = self.step(images.contiguous(memory_format=torch.channels_last), labels, lr)
        stop = self.observer.should_stop()
        self.waiting.append((sums, len(images), stop))
        return self._count_() if stop or len(self.waiting) >= self.at_once else False

    def _learning_rate(self, step: int) -> float:
        progress = (self.state.epoch * self.steps + step) / (self.phase.epochs * self.steps)
        spec = self.recipe.optim
        scale = self.recipe.data.batch_size / spec.lr_batch_size if spec.lr_batch_size else 1.0
        return scale * self.phase.lr * learning_rate(progress, spec)

    def _count_(self) -> bool:
        """Count the waiting steps, with one read from the device; returns whether any process was asked to stop."""
        if not self.waiting:
            return False
        state = self.state
        figures = torch.stack([sums for sums, _, _ in self.waiting]).double().cpu()  # the only synchronization
        others = torch.tensor([[count, stop] for _, count, stop in self.waiting], dtype=torch.float64)
        rows = sum_over_ranks(torch.cat([figures, others], 1)).tolist()
        self.waiting = []
        for loss, correct, count, _ in rows:
            value = loss / count
            if not math.isfinite(value):
                raise DivergedError(f"the loss is {value} in epoch {state.epoch + 1} at step {state.step}; {self._lower_lr}")
            state.count(value, int(correct), int(count))
            self.observer.on_step(state.epoch, state.step, *state.running, int(count))
        return any(stops for _, _, _, stops in rows)

    def save_is_due(self) -> bool:
        """Whether the last training state is older than `save_every`."""
        return time.monotonic() - self.saved_at >= self.options.save_every

    def save_(self) -> None:
        """Write the training state."""
        self._count_()
        self.records.save()
        self.saved_at = time.monotonic()

    def interrupted(self) -> Interrupted:
        """Write the state and return the error that stops the run, in every process."""
        wait_for_all()
        return Interrupted(f"stopped in epoch {self.state.epoch + 1} at step {self.state.step}; {self.remedy}")

    # ------------------------------------------------------------------------------------------------------- after an epoch

    def end_epoch_(self) -> None:
        """Recalibrate and evaluate the network, or the one with averaged weights; write checkpoints, state and log."""
        self._count_()
        state, seconds = self.state, time.perf_counter() - self.epoch_began
        loss, train_top1 = state.running
        with self.step.ema.in_place() if self.step.ema else nullcontext():
            self._recalibrate_()
            broadcast_buffers_(self.model)
            self._check_finite()
            top1 = evaluate(self.model, evaluation_batches(self.validation, world=world())).top1
            speed = (state.seen - self.seen_before) / max(seconds, 1e-9)
            row = Epoch(state.epoch + 1, loss, train_top1, top1, self._learning_rate(self.steps - 1), seconds, speed)
            self.records.finish_epoch_(row)
            self.observer.on_network(row.epoch, self.model)
            if self.observer.wants_activity:
                self._measure_activity(row.epoch)
        self.save_()
        self.records.write_log()
        self.observer.on_epoch(row)

    def _measure_activity(self, epoch: int) -> None:
        images = next(iter(evaluation_batches(self.validation)))[0][:IMAGES]
        if layers := measure_activity(self.model, images.to(self.options.device)):
            self.observer.on_activity(epoch, layers)

    def _recalibrate_(self) -> None:
        """Recalibrate batch norm on some batches of an epoch that is not trained."""
        batches = islice(self._batches(self.phase.epochs + self.state.epoch), self.recipe.optim.recalibrate_batches)
        recalibrate_norms_(self.model, (images.contiguous(memory_format=torch.channels_last) for images, _ in batches))

    def _check_finite(self) -> None:
        """Check the network after the epoch's last step, which no loss covers, before it is evaluated and saved."""
        check_network(self.model, DivergedError, source=f"epoch {self.state.epoch + 1}", remedy=self._lower_lr)

    @property
    def _lower_lr(self) -> str:
        bits = next((bits for bits, phase in reversed(self.recipe.phase.items()) if phase == self.phase), "N")
        return f"lower phase.{bits}.lr={self.phase.lr:g}, or set optim.clip_norm=1"

    # ------------------------------------------------------------------------------------------------- after the last epoch

    def finish_(self) -> FitResult:
        """The result; the network has the averaged weights if the phase has an EMA."""
        if self.step.ema:
            self.step.ema.put_in_place_()
        self.records.write_log()  # again: the run may have been killed between its last state and its log
        self.records.finish()
        return result_of(self.records.best, self.records.last, self.state.history)
