"""Runs whose folders were damaged between two calls: refused, or resumed to the very weights of an undisturbed run."""

import random
import shutil
from pathlib import Path

import torch
from fuzz.corpus import Corpus
from fuzz.files import damage
from fuzz.oracle import Failure, refusal, same
from nets import digits_net
from torch import Tensor

from nbsnn.data.images import ImageSet, Splits
from nbsnn.data.sets.digits import load_digits
from nbsnn.errors import Interrupted
from nbsnn.recipe import Phase
from nbsnn.recipes import load_recipe
from nbsnn.tensorfile import read_tensors
from nbsnn.training.loop import fit
from nbsnn.training.observer import Observer
from nbsnn.training.options import FitOptions

RECIPE = load_recipe("digits/resnet20", ["data.batch_size=32"])
PHASE = Phase(2, lr=0.05)


class StopAfter(Observer):
    """Ends a run after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def should_stop(self) -> bool:
        self.steps -= 1
        return self.steps <= 0


class Runs:
    """A run that was stopped, the same one finished, and the weights that it ends with."""

    def __init__(self, folder: Path) -> None:
        full = load_digits()
        train, validation = full.train, full.validation
        assert isinstance(train, ImageSet) and isinstance(validation, ImageSet)  # noqa: PT018 (no test)
        self.splits = Splits(train.take(slice(0, 160)), validation.take(slice(0, 20)), full.test)
        self.stopped, self.finished = folder / "stopped", folder / "finished"
        for steps in (3, 5):  # the second time it leaves two generations of its state
            try:
                self.go_on(self.stopped, StopAfter(steps))
            except Interrupted:
                continue
        shutil.copytree(self.stopped, self.finished)
        self.weights = self.go_on(self.finished)

    def go_on(self, folder: Path, observer: Observer | None = None) -> dict[str, Tensor]:
        """Begin or resume the run in a folder; the weights of its last and of its best epoch."""
        torch.manual_seed(0)
        done = fit(digits_net(), self.splits, RECIPE, PHASE, out=folder, options=FitOptions(), observer=observer)
        return {f"{path.stem} {key}": value for path in (done.last, done.best) for key, value in read_tensors(path)[1].items()}


def damaged_run(r: random.Random, corpus: Corpus, folder: Path) -> str:
    """Damage, exchange, empty or delete files of a run, and resume it."""
    runs = corpus.cached("runs", Runs)
    source = r.choice([runs.stopped, runs.finished])
    shutil.copytree(source, folder / "run")
    paths = sorted((folder / "run").iterdir())
    for path in r.sample(paths, r.choice([1, 1, 2, len(paths)])):
        kind = r.randrange(10)
        if kind < 6:
            path.write_bytes(damage(r, path.read_bytes(), corpus))
        elif kind == 6:
            path.write_bytes((source / r.choice(paths).name).read_bytes() if r.random() < 0.5 else b"")
        elif kind == 7:
            path.unlink()
    weights, said = refusal(lambda: runs.go_on(folder / "run"))
    if said is None and not same(weights, runs.weights):
        raise Failure(f"a damaged {source.name} run ends with other weights")
    return "refused" if said else "accepted"
