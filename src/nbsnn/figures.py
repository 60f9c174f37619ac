"""Figures of a finished run: the float or quantized accuracy of each phase, and the spiking accuracy of each schedule."""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from nbsnn.checkpoint import load_checkpoint
from nbsnn.data.images import LabelledImages, evaluation_batches
from nbsnn.errors import CheckpointError
from nbsnn.evaluation.accuracy import evaluate
from nbsnn.evaluation.comparison import FIDELITY_IMAGES, spiking_form
from nbsnn.evaluation.engines import Measured, integer_or_reason, measured
from nbsnn.evaluation.fidelity import measure_fidelity
from nbsnn.integer.network import IntegerNetwork
from nbsnn.pipeline import phase_folder
from nbsnn.progress import ImageProgress
from nbsnn.quant.layers import QuantReLU
from nbsnn.recipe import FLOAT_BITS, Recipe
from nbsnn.spiking.schedules import valid_pairs
from nbsnn.summary import system_facts
from nbsnn.training.history import finished_phase
from nbsnn.training.matching import with_classes


class Looked(NamedTuple):
    """The images that figures are of: accuracies, step-by-step accuracies, and the comparison neuron by neuron."""

    test: LabelledImages
    stepped: LabelledImages
    compared: LabelledImages


def measure_run(
    recipe: Recipe,
    out: Path,
    test: LabelledImages,
    *,
    label: str,
    fidelity_images: int = FIDELITY_IMAGES,
    spiking_images: int | None = None,
    notes: Sequence[str] = (),
    model: nn.Module | None = None,
    progress: ImageProgress | None = None,
) -> dict[str, Any]:
    """Measure every finished phase of a run.

    Accuracies are in percent: of the float and quantized networks in floating point and of the integer network's counts on all
    test images, of spikes stepped by the integer engine on `spiking_images` of them. `off` is the share of neurons, in
    percent, whose count differs from the quantized activation, on `fidelity_images` of them, in float64.

    Args:
        recipe: of the run.
        out: its folder.
        test: images.
        label: name of the data in the report.
        fidelity_images, spiking_images: as above; all unless given for the latter.
        notes: remarks stored with the figures, one line each.
        model: the float network, if it is not one of `nbsnn.list_models()`.
        progress: called with a title of the current step and the number of images done since the last call.
    Raises:
        CheckpointError: no phase of this recipe has ended in the folder.
    """
    recipe = with_classes(recipe, test, [phase_folder(out, int(bits)) for bits in recipe.phase])
    looked = Looked(test, test.some(spiking_images), test.some(fidelity_images))
    tell = progress or (lambda what, count: None)
    done = [phase for key in recipe.phase if (phase := _phase(recipe, int(key), out, looked, tell, model))]
    if not done:
        raise CheckpointError(f"{out} holds no finished phase of the recipe {recipe.name} ({recipe.hash})")
    return {
        "kind": "accuracy", "model": recipe.model.name, "data": label, "test_images": len(test),
        "recipe": recipe.to_dict(places=False), "recipe_hash": recipe.hash, "seed": recipe.seed,
        "machine": system_facts(), "notes": list(notes), "phases": done,
    }  # fmt: skip


def images_to_measure(recipe: Recipe, test: int, spiking_images: int | None, fidelity_images: int = FIDELITY_IMAGES) -> int:
    """The number of images that `measure_run` reports to `progress`, if all phases have ended."""
    stepped = min(test, spiking_images or test)
    each = test + stepped * (stepped < test) + len(valid_pairs()) * (stepped + min(test, fidelity_images))
    return 2 * len(recipe.phase) * test + sum(int(key) != FLOAT_BITS for key in recipe.phase) * each


def _phase(
    recipe: Recipe, bits: int, out: Path, looked: Looked, progress: ImageProgress, model: nn.Module | None
) -> dict[str, Any] | None:
    phase = recipe.phase[str(bits)]
    finished = finished_phase(recipe, bits, phase_folder(out, bits))
    if finished is None:
        return None
    last, best = (load_checkpoint(path, model=model) for path in (finished.last, finished.best))
    last_top1 = _top1(last, looked.test, progress, f"{bits} bits, last epoch")
    if finished.best_is_last:
        progress(f"{bits} bits, best epoch", len(looked.test))
        best_top1 = last_top1
    else:
        best_top1 = _top1(best, looked.test, progress, f"{bits} bits, best epoch")
    result = {
        "bits": bits,
        "epochs": phase.epochs,
        "seconds": round(sum(row.seconds for row in finished.history), 1),
        "last_top1": last_top1,
        "best_top1": best_top1,
        "best_epoch": finished.best_epoch.epoch,
        "validation_top1": finished.best_epoch.top1,
    }
    return result | ({} if bits == FLOAT_BITS else _spiking(best, looked, progress, f"{bits} bits"))


def _top1(model: nn.Module, images: LabelledImages, progress: ImageProgress, what: str) -> float:
    return evaluate(model, evaluation_batches(images), progress=partial(progress, what)).top1


def _spiking(quantized: nn.Module, looked: Looked, progress: ImageProgress, what: str) -> dict[str, Any]:
    integer = integer_or_reason(quantized, looked.test)
    same = len(looked.stepped) == len(looked.test)

    def counts(images: LabelledImages) -> float:
        """Accuracy of the integer network's counts, or of the quantized network where there is none."""
        if isinstance(integer, str):
            return _top1(quantized, images, progress, f"{what}, quantized")
        way = Measured(integer, "integer, native")
        return evaluate(integer, way.batches(images), progress=partial(progress, f"{what}, counts")).top1

    counts_top1 = counts(looked.test)
    return {
        "timesteps": max(m.levels for m in quantized.modules() if isinstance(m, QuantReLU)),
        "counts_engine": f"float: {integer}" if isinstance(integer, str) else "integer, native",
        "counts_top1": counts_top1,
        "fidelity_images": len(looked.compared),
        "spiking_images": len(looked.stepped),
        "spiking_counts_top1": counts_top1 if same else counts(looked.stepped),
        "spiking": list(_rows(quantized, integer, looked, progress, what)),
    }


def _rows(
    quantized: nn.Module, integer: IntegerNetwork | str, looked: Looked, progress: ImageProgress, what: str
) -> Iterator[dict[str, Any]]:
    double = copy.deepcopy(quantized).double()
    for neuron, schedule in valid_pairs():
        tell = partial(progress, f"{what}, {neuron} {schedule}")
        plain = spiking_form(quantized, looked.stepped, neuron=neuron, schedule=schedule)
        way = measured(plain, integer, neuron=neuron, schedule=schedule)
        accuracy = evaluate(way.network, way.batches(looked.stepped), progress=tell)
        spiking = spiking_form(double, looked.compared, neuron=neuron, schedule=schedule)
        fidelity = measure_fidelity(double, spiking, looked.compared.normalized(), progress=tell)
        yield {
            "neuron": neuron, "schedule": schedule, "engine": way.engine, "top1": accuracy.top1, "steps": accuracy.steps,
            "max_steps": accuracy.max_steps, "seconds": round(accuracy.seconds, 1), "off": fidelity.off,
            "layers_off": sum(layer.differing > 0 for layer in fidelity.layers), "layers": len(fidelity.layers),
            "largest": max(layer.largest for layer in fidelity.layers), "agreement": fidelity.agreement,
        }  # fmt: skip


def engines(figures: dict[str, Any]) -> list[str]:
    """What computed the spiking accuracies, one line each; none in figures of earlier versions."""
    rows = [row for phase in figures["phases"] for row in phase.get("spiking", ())]
    return [f"spiking accuracy by {engine}" for engine in dict.fromkeys(row.get("engine") for row in rows) if engine]


COLUMNS = ("bits", "epochs", "last epoch", "best", "integer", "T", "neuron, schedule", "spiking", "neurons off %", "steps, max")


def table_rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """The result of `measure_run` as rows under `COLUMNS`; accuracies are top-1 in percent."""
    lines = []
    for phase in figures["phases"]:
        bits = "float" if phase["bits"] == FLOAT_BITS else str(phase["bits"])
        first = (bits, str(phase["epochs"]), f"{phase['last_top1']:.2f}", f"{phase['best_top1']:.2f}")
        if "spiking" not in phase:
            lines.append((*first, *("-" for _ in COLUMNS[len(first) :])))
            continue
        some = "" if phase["spiking_images"] == figures["test_images"] else f" ({phase['spiking_counts_top1']:.2f})"
        head: tuple[str, ...] = (*first, f"{phase['counts_top1']:.2f}{some}", str(phase["timesteps"]))
        for row in phase["spiking"]:
            lines.append((*head, f"{row['neuron']} {row['schedule']}", f"{row['top1']:.2f}", f"{row['off']:.3f}",
                          f"{row['steps']:.1f}, {row['max_steps']}"))  # fmt: skip
            head = ("",) * len(head)
    return lines
