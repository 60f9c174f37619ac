"""The story on one page: data → train → convert → evaluate → report. The command line and the published scripts call this."""

import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.checkpoint import load_checkpoint, save_checkpoint
from nbsnn.data import Progress, load_data
from nbsnn.data.images import Batches, ImageSet, Splits
from nbsnn.evaluate.accuracy import Report, evaluate
from nbsnn.evaluate.fidelity import Fidelity, measure_fidelity
from nbsnn.models import build_model
from nbsnn.recipe import FLOAT_BITS, Recipe
from nbsnn.spiking.convert import VALID_PAIRS, to_spiking
from nbsnn.train.loop import EVALUATION_BATCH, FitResult, Observer, finished_phase, fit
from nbsnn.train.progressive import CALIBRATION_IMAGES, next_form

FIDELITY_IMAGES = 200


@dataclass(frozen=True)
class PhaseResult:
    """A finished phase: its checkpoints, and the accuracy on the test images of the last and of the best epoch."""

    bits: int
    epochs: int
    fit: FitResult
    last: Report
    best: Report


def phase_folder(out: Path, bits: int) -> Path:
    """Where a phase keeps its files."""
    return out / f"{bits}bit"


def new_model(recipe: Recipe) -> nn.Module:
    """The recipe's float network with fresh weights, decided by the seed."""
    torch.manual_seed(recipe.seed)
    spec = recipe.model
    return build_model(spec.name, num_classes=spec.num_classes, in_channels=spec.in_channels, image_size=spec.image_size)


def calibration_images(train: ImageSet) -> Tensor:
    """Normalised training images, evenly spaced, from which thresholds start."""
    step = max(1, len(train) // CALIBRATION_IMAGES)
    return train.normalized(train.images[::step][:CALIBRATION_IMAGES])


def train(
    recipe: Recipe,
    out: Path,
    *,
    splits: Splits | None = None,
    init: nn.Module | None = None,
    device: torch.device | str = "cpu",
    observer: Observer | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Iterator[PhaseResult]:
    """Run a recipe's phases one after the other; yields each as it ends. Finished phases in `out` are not run again.

    Args:
        recipe: what to do.
        out: a folder per phase is made in it, such as `out/4bit`.
        splits: the data, if loaded already.
        init: the network that the first phase starts from; fresh unless given.
        progress: of a download.
        overwrite: train anew where results lie already.
    """
    splits = splits or load_data(recipe.data, progress=progress)
    model = init or new_model(recipe)
    test = Batches(splits.test, EVALUATION_BATCH)
    for key, phase in recipe.phase.items():
        bits, folder = int(key), phase_folder(out, int(key))
        finished = None if overwrite else finished_phase(recipe, phase, folder)
        if finished is None:
            model = next_form(model.cpu(), recipe, bits, calibration_images(splits.train))
            title = "float" if bits == FLOAT_BITS else f"{bits} bits"
            finished = fit(
                model, splits, recipe, phase,
                out=folder, title=title, device=device, observer=observer, overwrite=overwrite,
            )  # fmt: skip
        last, best = (load_checkpoint(path).to(device) for path in (finished.last, finished.best))
        yield PhaseResult(bits, phase.epochs, finished, evaluate(last, test), evaluate(best, test))
        model = best
