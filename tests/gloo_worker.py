"""What each process of tests/test_distributed.py runs under torchrun: a tiny network, trained and evaluated together."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from nets import digits_net

from nbsnn.data.images import Splits, evaluation_batches
from nbsnn.data.sets.digits import load_digits
from nbsnn.distributed import process_group, world
from nbsnn.errors import Interrupted
from nbsnn.evaluation.accuracy import evaluate
from nbsnn.recipe import Phase
from nbsnn.recipes import load_recipe
from nbsnn.training.loop import fit
from nbsnn.training.options import FitOptions
from nbsnn.training_console import TrainingConsole

RECIPE = load_recipe("digits/resnet20", ["data.batch_size=40", "optim.freeze_norms=true"])
PHASE = Phase(2, lr=0.05)
STEPS = 5  # in an epoch


def splits() -> Splits:
    """200 training images, and 101 to evaluate on: no multiple of the number of processes."""
    full = load_digits()
    return Splits(full.train.take(slice(0, 200)), full.validation.take(slice(0, 101)), full.test)


class Fate(TrainingConsole):
    """Ends the process, or asks it to stop, after a step of the first epoch."""

    def __init__(self, *, kill_at: int | None = None, stop_at: int | None = None) -> None:
        super().__init__()
        self.kill_at, self.stop_at, self.step = kill_at, stop_at, 0

    def on_step(self, epoch: int, step: int, loss: float, top1: float, images: int) -> None:
        self.step = step + epoch * STEPS
        if self.step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def should_stop(self) -> bool:
        return self.stop_at == self.step + 1


def train(out: Path, phase: Phase = PHASE, **fate: int | None) -> dict[str, float]:
    """Train in `out`; the loss and the accuracies of the last epoch."""
    torch.manual_seed(0)
    model = digits_net()
    result = fit(model, splits(), RECIPE, phase, out=out, options=FitOptions(save_every=0, title="tiny"), observer=Fate(**fate))
    report = evaluate(model, evaluation_batches(splits().validation, at_a_time=64, world=world()))
    row = result.history[-1]
    return {"loss": row.loss, "train_top1": row.train_top1, "top1": row.top1, "images": report.images, "again": report.top1}


def main(out: Path) -> None:
    """One epoch; two; a run that one process asks to stop; a run in which a rank dies, which the second life resumes."""
    torch.set_num_threads(1)
    with process_group() as group:
        if os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
            train(out / "killed")
            return
        figures = train(out / "epoch", Phase(1, lr=PHASE.lr))
        train(out / "whole")
        try:
            train(out / "stopped", stop_at=7 if group.rank == 1 else None)  # the other processes stop with it
            raise AssertionError("nobody stopped")
        except Interrupted as stop:
            figures["stopped"] = str(stop)
        (out / f"figures{group.rank}.json").write_text(json.dumps(figures))
        train(out / "killed", kill_at=8 if group.rank == 1 else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
