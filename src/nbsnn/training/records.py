"""The files of a phase in training: written epoch by epoch, and restored or repaired when the run resumes."""

import logging
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nbsnn.checkpoint import save_checkpoint
from nbsnn.distributed import wait_for_all, warn, world
from nbsnn.errors import CheckpointError, ConfigError
from nbsnn.outputs import kind_of
from nbsnn.recipe import Phase, Recipe
from nbsnn.tensorfile import read_header, read_tensors, write_tensors
from nbsnn.training.conditions import Conditions, compare_conditions
from nbsnn.training.folder import FINISHED_FILE, PREVIOUS_FILE, STATE_FILE
from nbsnn.training.history import foreign_logs, is_of_run, write_history
from nbsnn.training.observer import Epoch
from nbsnn.training.state import Expected, Learner, Saved, TrainingState, give_back_, newest_state, read_state, save_state

logger = logging.getLogger(__name__)


class Records:
    """Training states, checkpoints and log of a phase in a folder; only rank 0 writes.

    Args:
        out: the folder.
        names: of the checkpoints of the best and of the last epoch.
        learner: the objects that are saved and restored.
        recipe, phase: of the run.
        steps: in an epoch.
        start, taught: the start and the teacher of the run; a state of another start or teacher is not loaded.
    """

    def __init__(
        self,
        out: Path,
        names: tuple[str, str],
        learner: Learner,
        recipe: Recipe,
        phase: Phase,
        *,
        steps: int,
        start: str,
        taught: str,
    ) -> None:
        self.out, self.learner, self.recipe, self.phase, self.steps = out, learner, recipe, phase, steps
        self.best, self.last = (out / name for name in names)
        self.start, self.taught = start, taught
        self.state = TrainingState(self._fingerprint(recipe, phase))

    def _fingerprint(self, recipe: Recipe, phase: Phase) -> str:
        begun = f" begun with {self.start}" if self.start else ""
        return f"{recipe.hash} {phase}{self.taught}{begun}"

    # ------------------------------------------------------------------------------------------------------- in training

    def save(self) -> None:
        """Write the training state."""
        if world().is_main:
            save_state(self.out, self.state, self.learner)

    def finish_epoch_(self, row: Epoch) -> None:
        """Write the epoch's network; the training state, which counts the epoch, is written next."""
        state = self.state
        state.history.append(asdict(row))
        state.next_epoch()
        better = row.top1 >= state.best
        state.best = max(state.best, row.top1)
        for path in ([self.best] if better else []) + [self.last]:
            self._write_network(path, asdict(row))

    def write_log(self) -> None:
        """Write the log of the epochs so far."""
        if world().is_main and self.state.history:
            write_history(self.out, self.state.history)

    def forget(self) -> None:
        """Remove all training states after every process has reached this call."""
        wait_for_all()
        if world().is_main:
            for name in (PREVIOUS_FILE, STATE_FILE, FINISHED_FILE):
                (self.out / name).unlink(missing_ok=True)
        wait_for_all()

    def finish(self) -> None:
        """Rename the last training state to that of a finished phase, after every process has reached this call."""
        wait_for_all()
        if world().is_main:
            (self.out / PREVIOUS_FILE).unlink(missing_ok=True)
            (self.out / STATE_FILE).replace(self.out / FINISHED_FILE)
        wait_for_all()

    def _write_network(self, path: Path, row: dict[str, Any]) -> None:
        metrics = {"validation_top1": row["top1"], "epoch": row["epoch"]} | ({"start": self.start} if self.start else {})
        if self.state.extended:
            metrics["extended_after"] = self.state.extended
        if world().is_main:
            save_checkpoint(path, self.learner.model, recipe=self.recipe, metrics=metrics)

    # -------------------------------------------------------------------------------------------------------- resuming

    def restore_(self, conditions: Conditions) -> None:
        """Resume from the newest whole training state in the folder, or from that of the finished phase, if there is one.

        Raises:
            CheckpointError: the state is damaged, has other settings or conditions, or is that of a finished phase that cannot
                be resumed.
        """
        saved = newest_state(self.out, self.learner, Expected(self.state.fingerprint, self.phase.epochs, self.steps))
        if saved is None and (self.last.is_file() or (self.out / FINISHED_FILE).is_file()):
            saved = self._finished_state()
        if saved is None:
            self._check_place()
            return
        compare_conditions(saved.state.conditions, conditions, self.out)
        give_back_(saved, self.learner)
        self.state = replace(saved.state, fingerprint=self.state.fingerprint)
        wait_for_all()  # nobody writes while others still read
        if not world().is_main:
            return
        if saved.path.name == PREVIOUS_FILE:  # the newest one is damaged and must not replace this one
            (self.out / STATE_FILE).unlink(missing_ok=True)
        with self.learner.ema.in_place() if self.learner.ema else nullcontext():
            self._mend_checkpoints_()

    def _check_place(self) -> None:
        """Raise an error if other files have the names of the run's files.

        Raises:
            ConfigError: `best` or a log was not written by nbsnn.
        """
        strange = [] if kind_of(self.best) or not self.best.exists() else [self.best]
        strange += foreign_logs(self.out)
        if strange:
            raise ConfigError(
                f"{strange[0]}: not a file that nbsnn wrote, or damaged; choose another folder, or delete it first"
            )

    def _finished_state(self) -> Saved:
        """The last state of the finished phase in the folder, to repair its checkpoints or to give it more epochs.

        Raises:
            CheckpointError: it is missing, or from another run.
        """
        path = self.out / FINISHED_FILE
        header = read_header(path) or {}
        done = header.get("epoch", 0) if "fingerprint" in header else 0
        before = replace(self.phase, epochs=max(done, 1))
        recipe = replace(self.recipe, phase=self.recipe.phase | dict.fromkeys(self._names, before))
        fingerprint = self._fingerprint(recipe, before)
        if header.get("fingerprint") != fingerprint or not 0 < done <= self.phase.epochs:
            raise CheckpointError(
                f"{self.out} holds a finished phase, of this or another recipe or start; choose another folder, or overwrite "
                "it (overwrite=True)"
            )
        saved = read_state(path, self.learner, Expected(fingerprint, done, self.steps))
        if done < self.phase.epochs:
            saved.state.extended.append(done)
            warn(
                logger,
                "%s: continues after the %d epochs of a finished phase; from there the learning rate follows the schedule of "
                "%d epochs, so the weights are not those of %d epochs in one go",
                *(self.out, done, self.phase.epochs, self.phase.epochs),
            )
        return saved

    def _mend_checkpoints_(self) -> None:
        """Rewrite damaged or missing checkpoints; at the end of an epoch the network is that of `last`."""
        state, history = self.state, self.state.history
        if not history:
            return
        between = state.step == 0
        if between and _epoch_in(self.last) != state.epoch:
            self._write_network(self.last, history[-1])
        if self._has_best():
            return
        best = max(history, key=lambda row: (row["top1"], row["epoch"]))
        rows = {row["epoch"]: row for row in history}
        found = rows.get(_epoch_in(self.last) or 0)
        if found is not best:  # if there is none, `last` is damaged too: both are written at the end of this epoch
            heir = f"epoch {found['epoch']}" if found else "the next epoch"
            lost = (
                "%s: damaged, missing or of another run, and the network of epoch %d, the best so far, is lost; that of %s "
                "takes its place"
            )
            warn(logger, lost, self.best, best["epoch"], heir)
        if found is None:
            state.best = -1.0
            return
        header, tensors = read_tensors(self.last)
        write_tensors(self.best, tensors, header)
        state.best = found["top1"]

    @property
    def _names(self) -> list[str]:
        """The bits of the phase as in the recipe; none for a phase that is not of the recipe."""
        return [bits for bits, phase in self.recipe.phase.items() if phase == self.phase][-1:]

    def _has_best(self) -> bool:
        """Whether the checkpoint of the best epoch is there, undamaged, and of this run."""
        try:
            header, _ = read_tensors(self.best)
        except CheckpointError:
            return False
        ours = all(is_of_run(header, self.recipe, int(bits), self.state.history) for bits in self._names)
        return ours and isinstance(header.get("metrics", {}).get("epoch"), int)


def _epoch_in(path: Path) -> int | None:
    """The epoch of the network in a checkpoint of a run; None if it is damaged, missing, or another file."""
    try:
        epoch = read_tensors(path)[0].get("metrics", {}).get("epoch")
    except CheckpointError:
        return None
    return epoch if isinstance(epoch, int) else None
