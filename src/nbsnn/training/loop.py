"""The training loop: one phase of a recipe, with checkpoints that a killed run goes on from."""

from pathlib import Path

import torch
from torch import nn

from nbsnn.data.images import Splits
from nbsnn.distributed import is_revived, max_over_ranks, wait_for_all, world
from nbsnn.errors import ConfigError
from nbsnn.files import remove_leftovers
from nbsnn.finite import check_network
from nbsnn.recipe import Phase, Recipe
from nbsnn.training.execution import Execution, one_order_of_sums
from nbsnn.training.folder import BEST_FILE, LAST_FILE, STATE_FILE, has_unfinished, sole_writer
from nbsnn.training.history import FitResult, read_history, result_of
from nbsnn.training.observer import Observer
from nbsnn.training.run import Run
from nbsnn.training.state import TrainingState

SAVE_EVERY = 60.0  # seconds between training states within an epoch


def fit(
    model: nn.Module,
    splits: Splits,
    recipe: Recipe,
    phase: Phase,
    *,
    out: Path,
    title: str = "training",
    device: torch.device | str = "cpu",
    execution: Execution | None = None,
    save_every: float = SAVE_EVERY,
    observer: Observer | None = None,
    names: tuple[str, str] = (BEST_FILE, LAST_FILE),
    first_epoch: int = 0,
    overwrite: bool = False,
    teacher: nn.Module | None = None,
    start: str = "",
) -> FitResult:
    """Train a float or quantized network in place for one phase; continues the unfinished phase that it finds in `out`.

    Args:
        model: changed in place, and moved to `device`; in the end it is the network of the last epoch, the averaged one where
            weights are averaged.
        splits: images; the validation ones choose the best epoch.
        recipe: batches, optimizer and seed.
        phase: epochs, learning rate, weight decay, distillation, averaging.
        out: folder for `best` and `last` checkpoints, `log.csv`, `log.jsonl`, and training states: two until the end, then one,
            from which the phase can be given more epochs.
        title: for the observer.
        execution: compiled or eager, recorded or not, and the type of the forward pass; eager float32 unless given.
        save_every: seconds between training states within an epoch; 0 saves after each step.
        names: of the files for the best and the last epoch.
        first_epoch: epochs that count as done when the phase starts anew; those of them that `out` has a log of stay in it.
        overwrite: start anew where `out` holds results already.
        teacher: a float network that teaches this one, if the phase distils.
        start: what the run began with, if not with fresh weights (`nbsnn.training.state.identity`); a run that began with
            something else is not gone on with.
    Raises:
        Interrupted: the observer asked to stop; call again to go on.
        ConfigError: the network holds numbers that are not finite, or settings do not fit it.
        CheckpointError: the folder cannot be written, holds results of another recipe or under other conditions (see
            `nbsnn.training.conditions`), or another process trains there.
    """
    observer = observer or Observer()
    check_network(model, ConfigError, source="the network to train")
    _check_shares(recipe.data.batch_size, recipe.optim.accumulate)
    if first_epoch >= phase.epochs:
        raise ConfigError(f"first_epoch={first_epoch}: the phase has {phase.epochs} epochs; give it more")
    model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with sole_writer(out), one_order_of_sums():
        if world().is_main:
            remove_leftovers(out)
        run = Run(model, splits, recipe, phase, out, names, execution or Execution(), observer, teacher, start, save_every)
        records = run.records
        if first_epoch:
            records.state.begin(first_epoch, read_history(out, until=first_epoch))
        conditions = run.conditions | {"first epoch": str(first_epoch)}
        if overwrite and not (is_revived() and has_unfinished(out)):  # by torchrun: then what lies there is this run's own
            records.forget()
            run.remedy = "run it again without overwriting (overwrite=False) to resume"
        else:
            records.restore_(conditions)
        records.state.conditions = conditions
        wait_for_all()  # nobody writes while others still read
        run.save_()  # a folder that cannot be written is refused now, not after an epoch
        _check_same_folder(out / STATE_FILE, run.state)
        observer.on_phase(title, phase.epochs, run.steps, run.execution)
        if run.state.epoch > first_epoch or run.state.step:
            observer.on_resume(run.state.epoch, run.state.step)
        while run.state.epoch < phase.epochs:
            run.train_epoch_()
        if run.step.average:
            run.step.average.put_in_place_()
        records.write_log()  # again: the run may have been killed between its last state and its log
        records.finish()
    return result_of(records.best, records.last, run.state.history)


def _check_shares(batch_size: int, accumulate: int) -> None:
    """Every part of a batch that norm layers see must hold two images at least, and processes need equal shares."""
    parts = world().size * accumulate
    if batch_size % world().size or batch_size < 2 * parts:
        raise ConfigError(
            f"data.batch_size={batch_size}: is shared by {world().size} processes in {accumulate} parts each; "
            f"choose a multiple of {world().size} from {2 * parts}"
        )


def _check_same_folder(path: Path, state: TrainingState) -> None:
    """Processes on several machines must see one folder, or each would go on from elsewhere."""
    wait_for_all()
    here = torch.tensor([int(path.is_file()), state.epoch, state.step])
    low, high = -max_over_ranks(-here), max_over_ranks(here)
    if not low[0] or not low.equal(high):
        raise ConfigError(f"{path.parent}: not all processes see the same files there; choose a folder that all machines share")
