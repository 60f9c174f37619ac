"""One phase under way: its epochs and steps, and the files that it writes on the way."""

import time
import warnings
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from nbsnn.checkpoint import save_checkpoint
from nbsnn.data.images import Batches, Splits, evaluation_batches
from nbsnn.distributed import share_buffers_, sum_over_ranks, wait_for_all, world
from nbsnn.errors import ConfigError
from nbsnn.evaluate.accuracy import evaluate
from nbsnn.models.norms import estimate_norms_, freeze_norms_
from nbsnn.recipe import Phase, Recipe
from nbsnn.train.execution import Execution
from nbsnn.train.history import write_history
from nbsnn.train.loss import Loss
from nbsnn.train.observer import DivergedError, Epoch, Interrupted, Observer
from nbsnn.train.optim import keep_positive_, learning_rate, make_optimizer, set_learning_rate_
from nbsnn.train.state import STATE_FILE, TrainingState, save_state


def _together(model: nn.Module) -> nn.Module:
    """The network as several processes train it: they average their gradients as they arise.

    Each sees the norm statistics of its own images; the main one's are kept.
    """
    # A weight with one input channel or a 1×1 kernel has the same layout under two sets of strides.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides", category=UserWarning)
    return nn.parallel.DistributedDataParallel(model)


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
        self.out, self.execution, self.observer = out, execution, observer
        self.best, self.last = (out / name for name in names)
        self.device = next(model.parameters()).device
        self.world = world()
        self.model_of_all = _together(model) if self.world.size > 1 else model
        self.compiled = torch.compile(self.model_of_all) if execution.compiled else self.model_of_all
        self.train, self.validation = splits.train.to(self.device), splits.validation.to(self.device)
        self.loss = Loss(recipe.optim, phase, execution, teacher, self.device)
        self.optimizer = make_optimizer(model, phase, recipe.optim)
        self.steps = len(self._batches(0))
        if self.steps == 0:
            count = len(splits.train)
            raise ConfigError(f"data.batch_size={recipe.data.batch_size}: larger than the training set of {count} images")
        self.start = start
        begun = f" begun with {start}" if start else ""
        self.state = TrainingState(f"{recipe.hash} {phase}{self.loss.fingerprint}{begun}")
        self.save_every, self.saved_at = save_every, time.monotonic()
        self.remedy = "run the same command to go on"

    @property
    def state_path(self) -> Path:
        return self.out / STATE_FILE

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
            if self._train_step_(images.contiguous(memory_format=torch.channels_last), labels):
                self.save_()
                wait_for_all()  # the state is written before any process leaves
                raise Interrupted(f"stopped in epoch {state.epoch + 1} at step {state.step}; {self.remedy}")
            if time.monotonic() - self.saved_at >= self.save_every:
                self.save_()
        seconds = time.perf_counter() - start
        loss, train_top1 = state.running
        self._estimate_norms_()
        share_buffers_(self.model)
        top1 = evaluate(self.model, evaluation_batches(self.validation, world=self.world)).top1
        rate = self._rate(self.steps - 1)
        row = Epoch(state.epoch + 1, loss, train_top1, top1, rate, seconds, (state.seen - seen) / max(seconds, 1e-9))
        self._finish_epoch_(row)

    def _estimate_norms_(self) -> None:
        """Norm statistics from some batches of an epoch that is not trained on."""
        batches = islice(self._batches(self.phase.epochs + self.state.epoch), self.recipe.optim.norm_batches)
        estimate_norms_(self.model, (images.contiguous(memory_format=torch.channels_last) for images, _ in batches))

    def _rate(self, step: int) -> float:
        progress = (self.state.epoch * self.steps + step) / (self.phase.epochs * self.steps)
        spec = self.recipe.optim
        scale = self.recipe.data.batch_size / spec.rate_batch if spec.rate_batch else 1.0
        return scale * self.phase.lr * learning_rate(progress, spec)

    def _train_step_(self, images: Tensor, labels: Tensor) -> bool:
        """Train on a batch; says whether any process was asked to stop."""
        state, spec = self.state, self.recipe.optim
        set_learning_rate_(self.optimizer, self._rate(state.step))
        self.optimizer.zero_grad(set_to_none=True)
        loss, correct = self._backward(images, labels)
        if spec.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), spec.clip_norm)
        self.optimizer.step()
        keep_positive_(self.model)
        mine = torch.tensor([loss, correct, len(images), self.observer.should_stop()], dtype=torch.float64)
        loss, correct, count, stops = sum_over_ranks(mine).tolist()
        value = loss / count
        if value != value or value in (float("inf"), float("-inf")):
            raise DivergedError(
                f"the loss is {value} in epoch {state.epoch + 1} at step {state.step}; lower phase.BITS.lr={self.phase.lr:g} "
                "(--lr), or set optim.clip_norm=1"
            )
        state.count(value, int(correct), int(count))
        self.observer.on_step(state.epoch, state.step, *state.running, int(count))
        return bool(stops)

    def _backward(self, images: Tensor, labels: Tensor) -> tuple[float, int]:
        """Gradients of the mean loss over the batch, all parts of it; returns the sum of the losses and the hits."""
        data, spec = self.recipe.data, self.recipe.optim
        # The last batch of an epoch is smaller: not worth a second compilation.
        full = len(images) * self.world.size == data.batch_size
        compiled = full and len(images) % spec.accumulate == 0
        forward = self.compiled if compiled else self.model_of_all
        count = min(spec.accumulate, max(1, len(images) // 2))  # norm layers want two images at least
        parts = list(zip(images.tensor_split(count), labels.tensor_split(count), strict=True))
        sums = torch.zeros(2, device=self.device)
        for index, (part, answers) in enumerate(parts):
            # Gradients travel once, with the last part.
            wait = self.world.size > 1 and index < len(parts) - 1
            with self.model_of_all.no_sync() if wait else nullcontext():  # type: ignore[operator]
                with self.execution.precision(self.device):
                    logits = forward(part)
                logits = logits.float()
                loss = self.loss(logits, answers, part, compiled=compiled)
                (loss if len(parts) == 1 else loss * (len(part) / len(images))).backward()  # type: ignore[no-untyped-call]
            hits = (logits.detach().argmax(1) == answers).sum()
            sums += torch.stack([loss.detach() * len(part), hits.float()])
        total, correct = sums.tolist()  # one wait for the device
        return total, int(correct)

    def _finish_epoch_(self, row: Epoch) -> None:
        state = self.state
        state.history.append(asdict(row))
        state.next_epoch()
        metrics = {"validation_top1": row.top1, "epoch": row.epoch} | ({"start": self.start} if self.start else {})
        better = row.top1 >= state.best
        state.best = max(state.best, row.top1)
        for path in ([self.best] if better else []) + [self.last]:
            if self.world.is_main:
                save_checkpoint(path, self.model, recipe=self.recipe, metrics=metrics)
        self.save_()
        self.write_log()
        self.observer.on_epoch(row)

    def write_log(self) -> None:
        """Write the epochs so far."""
        if self.world.is_main:
            write_history(self.out, self.state.history)

    def save_(self) -> None:
        """Write the training state."""
        if self.world.is_main:
            save_state(self.out, self.state, self.model, self.optimizer)
        self.saved_at = time.monotonic()

    def forget_state(self) -> None:
        """Remove the training state, once every process has come here."""
        wait_for_all()
        if self.world.is_main:
            self.state_path.unlink(missing_ok=True)
        wait_for_all()
