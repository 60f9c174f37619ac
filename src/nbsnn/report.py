"""A finished run as figures that can be checked: per phase float or quantized accuracy, and per schedule the spiking one."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from nbsnn.checkpoint import load_checkpoint
from nbsnn.data.images import LabelledImages, evaluation_batches
from nbsnn.errors import CheckpointError
from nbsnn.evaluate.accuracy import evaluate
from nbsnn.evaluate.comparison import FIDELITY_IMAGES, convert
from nbsnn.evaluate.fidelity import measure_fidelity
from nbsnn.integer.lower import lower
from nbsnn.integer.network import IntegerNetwork
from nbsnn.pipeline import phase_folder
from nbsnn.recipe import FLOAT_BITS, Recipe
from nbsnn.spiking.convert import VALID_PAIRS
from nbsnn.summary import system_facts
from nbsnn.train.history import finished_phase

Progress = Callable[[str, int], None]


def report(
    recipe: Recipe,
    out: Path,
    test: LabelledImages,
    *,
    label: str,
    fidelity_images: int = FIDELITY_IMAGES,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure every finished phase of a run.

    Accuracies are of all test images, in percent: the float and quantized networks in floating point, the spiking ones
    stepped by the integer engine. `off` is the share of neurons, in percent, whose count differs from the quantized
    activation, on the first `fidelity_images` images, in float64.

    Args:
        recipe: of the run.
        out: its folder.
        test: images.
        label: what the data is called beside the figures.
        progress: called with what is being done and the images done since.
    Raises:
        CheckpointError: no phase of this recipe has ended in the folder.
    """
    phases = [
        _phase(recipe, int(key), out, test, fidelity_images, progress or (lambda what, count: None)) for key in recipe.phase
    ]
    done = [phase for phase in phases if phase]
    if not done:
        raise CheckpointError(f"{out} holds no finished phase of the recipe {recipe.name} ({recipe.hash})")
    return {
        "kind": "accuracy", "model": recipe.model.name, "data": label, "test_images": len(test), "recipe": recipe.to_dict(),
        "recipe_hash": recipe.hash, "seed": recipe.seed, "machine": system_facts(), "phases": done,
    }  # fmt: skip


def images_looked_at(recipe: Recipe, test: LabelledImages, fidelity_images: int = FIDELITY_IMAGES) -> int:
    """How many images `report` tells its progress of, if all phases have ended."""
    quantized = sum(int(key) != FLOAT_BITS for key in recipe.phase)
    return 2 * len(recipe.phase) * len(test) + quantized * (len(VALID_PAIRS) + 1) * (len(test) + fidelity_images)


def _phase(
    recipe: Recipe, bits: int, out: Path, test: LabelledImages, fidelity_images: int, progress: Progress
) -> dict[str, Any] | None:
    phase = recipe.phase[str(bits)]
    finished = finished_phase(recipe, bits, phase_folder(out, bits))
    if finished is None:
        return None
    best_epoch = max(finished.history, key=lambda row: (row.top1, row.epoch))
    last, best = load_checkpoint(finished.last), load_checkpoint(finished.best)
    result = {
        "bits": bits,
        "epochs": phase.epochs,
        "seconds": round(sum(row.seconds for row in finished.history), 1),
        "last_top1": _top1(last, test, progress, f"{bits} bits, last epoch"),
        "best_top1": _top1(best, test, progress, f"{bits} bits, best epoch"),
        "best_epoch": best_epoch.epoch,
        "validation_top1": best_epoch.top1,
    }
    return result | ({} if bits == FLOAT_BITS else _spiking(best, test, fidelity_images, progress, f"{bits} bits"))


def _top1(model: nn.Module, test: LabelledImages, progress: Progress, what: str) -> float:
    return evaluate(model, evaluation_batches(test), progress=partial(progress, what)).top1


def _spiking(quantized: nn.Module, test: LabelledImages, fidelity_images: int, progress: Progress, what: str) -> dict[str, Any]:
    sample = test.take(slice(0, fidelity_images))
    program = lower(quantized, test.normalized(test.pixels(slice(0, 2))), mean=test.mean, std=test.std)
    counts = evaluate(program, evaluation_batches(test), progress=partial(progress, f"{what}, counts"))
    rows = list(_rows(quantized, program, test, sample, progress, what))
    return {"timesteps": program.timesteps, "counts_top1": counts.top1, "fidelity_images": len(sample), "spiking": rows}


def _rows(
    quantized: nn.Module, program: IntegerNetwork, test: LabelledImages, sample: LabelledImages, progress: Progress, what: str
) -> Iterator[dict[str, Any]]:
    double = copy.deepcopy(quantized).double()
    for neuron, schedule in VALID_PAIRS:
        tell = partial(progress, f"{what}, {neuron} {schedule}")
        engine = program.using(engine="spikes", neuron=neuron, schedule=schedule)
        accuracy = evaluate(engine, evaluation_batches(test), progress=tell)
        spiking = convert(double, test, neuron=neuron, schedule=schedule)
        fidelity = measure_fidelity(double, spiking, sample.normalized(), progress=tell)
        yield {
            "neuron": neuron, "schedule": schedule, "top1": accuracy.top1, "steps": accuracy.steps,
            "max_steps": accuracy.max_steps, "seconds": round(accuracy.seconds, 1), "off": fidelity.off,
            "layers_off": sum(layer.differing > 0 for layer in fidelity.layers), "layers": len(fidelity.layers),
            "largest": max(layer.largest for layer in fidelity.layers), "agreement": fidelity.agreement,
        }  # fmt: skip


COLUMNS = ("bits", "epochs", "last epoch", "best", "integer", "T", "neuron, schedule", "spiking", "neurons off %", "steps, max")


def table(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """What `report` gave as lines under `COLUMNS`; accuracies are top-1 in percent."""
    lines = []
    for phase in figures["phases"]:
        bits = "float" if phase["bits"] == FLOAT_BITS else str(phase["bits"])
        first = (bits, str(phase["epochs"]), f"{phase['last_top1']:.2f}", f"{phase['best_top1']:.2f}")
        if "spiking" not in phase:
            lines.append((*first, *("-" for _ in COLUMNS[len(first) :])))
            continue
        head: tuple[str, ...] = (*first, f"{phase['counts_top1']:.2f}", str(phase["timesteps"]))
        for row in phase["spiking"]:
            lines.append((*head, f"{row['neuron']} {row['schedule']}", f"{row['top1']:.2f}", f"{row['off']:.3f}",
                          f"{row['steps']:.1f}, {row['max_steps']}"))  # fmt: skip
            head = ("",) * len(head)
    return lines
