"""One phase under way: its epochs and steps."""

import math
import time
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from nbsnn.data.images import Batches, Splits, evaluation_batches
from nbsnn.distributed import share_buffers_, sum_over_ranks, wait_for_all, world
from nbsnn.errors import ConfigError, DivergedError, Interrupted
from nbsnn.evaluation.accuracy import evaluate
from nbsnn.finite import check_network
from nbsnn.norms import freeze_norms_, recalibrate_norms_
from nbsnn.recipe import Phase, Recipe
from nbsnn.training.conditions import conditions_of
from nbsnn.training.execution import Execution
from nbsnn.training.loss import Loss
from nbsnn.training.observer import Epoch, Observer
from nbsnn.training.optim import learning_rate
from nbsnn.training.records import Records
from nbsnn.training.state import Learner, TrainingState
from nbsnn.training.step import Step


def _steps_at_once(device: torch.device) -> int:
    """Steps whose figures are fetched together, so that a GPU need not wait for the host; several processes agree on each."""
    return 16 if device.type == "cuda" and world().size == 1 else 1


class Run:
    """A phase of a recipe as it is trained; `fit` says what its arguments are."""

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        recipe: Recipe,
        phase: Phase,
        out: Path,
        names: tuple[str, str],
        execution: Execution,
        observer: Observer,
        teacher: nn.Module | None,
        start: str,
        save_every: float,
    ) -> None:
        self.model, self.recipe, self.phase = model, recipe, phase
        self.execution, self.observer = execution, observer
        device = next(model.parameters()).device
        self.world = world()
        self.train, self.validation = splits.train.to(device), splits.validation.to(device)
        loss = Loss(recipe.optim, phase, execution, teacher, device)
        batch = recipe.data.batch_size
        self.step = Step(model, spec=recipe.optim, phase=phase, execution=execution, loss=loss, batch=batch)
        self.waiting: list[
            tuple[Tensor, int, bool]
        ] = []  # figures still on the device, images, and whether a stop was asked for
        self.at_once = _steps_at_once(device)
        self.steps = len(self._batches(0))
        if self.steps == 0:
            count = len(splits.train)
            raise ConfigError(f"data.batch_size={recipe.data.batch_size}: larger than the training set of {count} images")
        learner = Learner(model, self.step.optimizer, self.step.average)
        self.records = Records(out, names, learner, recipe, phase, steps=self.steps, start=start, taught=loss.fingerprint)
        self.conditions = conditions_of(splits, execution, device)
        self.save_every, self.saved_at = save_every, time.monotonic()
        self.remedy = "run the same command to go on"

    @property
    def state(self) -> TrainingState:
        return self.records.state

    def _batches(self, epoch: int) -> Batches:
        data = self.recipe.data
        return Batches(
            self.train, data.batch_size, shuffle=True, augment=data.augment, seed=self.recipe.seed, epoch=epoch,
            world=self.world,
        )  # fmt: skip

    def train_epoch_(self) -> None:
        state = self.state
        self.model.train()
        if self.recipe.optim.freeze_norms:
            freeze_norms_(self.model)
        start, seen = time.perf_counter(), state.seen
        for images, labels in self._batches(state.epoch).starting_at(state.step):
            rate = self._rate(state.step + len(self.waiting))
            sums = self.step(images.contiguous(memory_format=torch.channels_last), labels, rate)
            if self._note_(sums, len(images)):
                self.save_()
                wait_for_all()  # the state is written before any process leaves
                raise Interrupted(f"stopped in epoch {state.epoch + 1} at step {state.step}; {self.remedy}")
            if time.monotonic() - self.saved_at >= self.save_every:
                self.save_()
        self._count_()
        seconds = time.perf_counter() - start
        loss, train_top1 = state.running
        average = self.step.average
        with average.in_place() if average else nullcontext():
            self._recalibrate_()
            share_buffers_(self.model)
            self._check_finite()
            top1 = evaluate(self.model, evaluation_batches(self.validation, world=self.world)).top1
            rate = self._rate(self.steps - 1)
            row = Epoch(state.epoch + 1, loss, train_top1, top1, rate, seconds, (state.seen - seen) / max(seconds, 1e-9))
            self.records.finish_epoch_(row)
            self.observer.on_network(row.epoch, self.model)
        self.save_()
        self.records.write_log()
        self.observer.on_epoch(row)

    def _check_finite(self) -> None:
        """The epoch's last step may have spoilt what no loss has seen yet; such a network is neither judged nor saved."""
        check_network(self.model, DivergedError, source=f"epoch {self.state.epoch + 1}", remedy=self._lower_rate)

    @property
    def _lower_rate(self) -> str:
        bits = next((bits for bits, phase in reversed(self.recipe.phase.items()) if phase == self.phase), "N")
        return f"lower phase.{bits}.lr={self.phase.lr:g}, or set optim.clip_norm=1"

    def _recalibrate_(self) -> None:
        """Norm statistics from some batches of an epoch that is not trained on."""
        batches = islice(self._batches(self.phase.epochs + self.state.epoch), self.recipe.optim.recalibrate_batches)
        recalibrate_norms_(self.model, (images.contiguous(memory_format=torch.channels_last) for images, _ in batches))

    def _rate(self, step: int) -> float:
        progress = (self.state.epoch * self.steps + step) / (self.phase.epochs * self.steps)
        spec = self.recipe.optim
        scale = self.recipe.data.batch_size / spec.lr_batch_size if spec.lr_batch_size else 1.0
        return scale * self.phase.lr * learning_rate(progress, spec)

    def _note_(self, sums: Tensor, images: int) -> bool:
        """Count a step, at once or together with the next ones; says whether any process was asked to stop."""
        stop = self.observer.should_stop()
        self.waiting.append((sums, images, stop))
        return self._count_() if stop or len(self.waiting) >= self.at_once else False

    def _count_(self) -> bool:
        """Count the steps that wait for it, with one look at the device; says whether any process was asked to stop."""
        if not self.waiting:
            return False
        state = self.state
        figures = torch.stack([sums for sums, _, _ in self.waiting]).double().cpu()  # the one wait for the device
        others = torch.tensor([[count, stop] for _, count, stop in self.waiting], dtype=torch.float64)
        rows = sum_over_ranks(torch.cat([figures, others], 1)).tolist()
        self.waiting = []
        for loss, correct, count, _ in rows:
            value = loss / count
            if not math.isfinite(value):
                raise DivergedError(f"the loss is {value} in epoch {state.epoch + 1} at step {state.step}; {self._lower_rate}")
            state.count(value, int(correct), int(count))
            self.observer.on_step(state.epoch, state.step, *state.running, int(count))
        return any(stops for _, _, _, stops in rows)

    def save_(self) -> None:
        """Write the training state."""
        self._count_()
        self.records.save()
        self.saved_at = time.monotonic()
