"""The training loop: one phase of a recipe, epoch by epoch and batch by batch. Called again, it resumes a killed run."""

from pathlib import Path

from torch import nn

from nbsnn.data.images import Splits
from nbsnn.recipe import Phase, Recipe
from nbsnn.training.checks import check_phase
from nbsnn.training.execution import one_order_of_sums
from nbsnn.training.folder import sole_writer
from nbsnn.training.history import FitResult
from nbsnn.training.observer import Observer
from nbsnn.training.options import FitOptions
from nbsnn.training.run import Run


def fit(
    model: nn.Module,
    splits: Splits,
    recipe: Recipe,
    phase: Phase,
    *,
    out: Path,
    options: FitOptions | None = None,
    observer: Observer | None = None,
    teacher: nn.Module | None = None,
) -> FitResult:
    """Train a float or quantized network in place for one phase; resumes an unfinished phase in `out`.

    Args:
        model: changed in place, and moved to the device; afterwards it is the network of the last epoch, with the averaged
            weights if the phase has an EMA.
        splits: images; the validation images choose the best epoch.
        recipe: batches, optimizer and seed.
        phase: epochs, learning rate, weight decay, distillation, EMA.
        out: folder for `best` and `last` checkpoints, `log.csv`, `log.jsonl`, and training states: two until the end, then one,
            from which the phase can be given more epochs.
        options: how and where it is trained; eager float32 on the CPU unless given.
        observer: callbacks of each step and epoch; may stop the run.
        teacher: a float network for distillation, if the phase distils.
    Raises:
        Interrupted: the observer asked to stop; call again to resume.
        ConfigError: the network holds values that are not finite, or settings do not fit it.
        DivergedError: loss or weights are no longer finite.
        CheckpointError: the folder cannot be written, holds results of another recipe or of other conditions (see
            `nbsnn.training.conditions`), or another process trains there.
    """
    options = options or FitOptions()
    check_phase(model, splits, recipe, phase, options)
    with sole_writer(out), one_order_of_sums():
        run = Run(model, splits, recipe, phase, out, options, observer or Observer(), teacher)
        run.start_or_resume_()
        for _ in run.epochs_left():
            run.begin_epoch_()
            for images, labels in run.batches_left():
                stop = run.train_batch_(images, labels)
                if stop or run.save_is_due():
                    run.save_()
                if stop:
                    raise run.interrupted()
            run.end_epoch_()
        return run.finish_()
