"""All steps in one file: data → train → convert → compare. Called by the command line and the published scripts."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nbsnn.arguments import checked_arguments
from nbsnn.checkpoint import load_checkpoint
from nbsnn.data import load_data
from nbsnn.data.download import DownloadProgress
from nbsnn.data.images import LabelledImages, Splits, evaluation_batches
from nbsnn.distributed import is_revived, world
from nbsnn.errors import CheckpointError, ConfigError, shown
from nbsnn.evaluation.accuracy import Report, evaluate
from nbsnn.evaluation.comparison import Finetuned, compare_finetuned
from nbsnn.importers.torchvision import MappedTensor, from_torchvision, torchvision_state
from nbsnn.integer.lower import lower
from nbsnn.integer.network import IntegerNetwork
from nbsnn.models import build_model
from nbsnn.progress import ProgressBar
from nbsnn.quant.plans import read_plan
from nbsnn.recipe import FLOAT_BITS, ModelSpec, Recipe
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.tensorfile import read_state_dict
from nbsnn.training.checks import check_later_phases, check_phase_before, check_run, check_teacher, phases_from
from nbsnn.training.finetune import FinetuneResult, finetune, images_to_see
from nbsnn.training.finetune_spec import Change, FinetuneSpec
from nbsnn.training.folder import forget_finished, has_run, has_unfinished
from nbsnn.training.history import FitResult, finished_phase
from nbsnn.training.loop import fit
from nbsnn.training.matching import check_convertible, check_fit, check_own_fit, with_classes
from nbsnn.training.observer import Observer
from nbsnn.training.options import FitOptions, TrainOptions
from nbsnn.training.progressive import CALIBRATION_IMAGES, next_form
from nbsnn.training.state import fingerprint
from nbsnn.wrappers import copied

_CALIBRATION_PARTS = 4


@dataclass(frozen=True)
class PhaseResult:
    """A finished phase: its checkpoints, and the accuracy on the test images of the last and of the best epoch."""

    bits: int
    epochs: int
    fit: FitResult
    last: Report
    best: Report


def phase_folder(out: Path, bits: int) -> Path:
    """The folder of a phase."""
    return out / f"{bits}bit"


def new_model(recipe: Recipe) -> nn.Module:
    """The recipe's float network with random weights, which depend on the seed."""
    torch.manual_seed(recipe.seed)
    return _build(recipe.model)


def pretrained_model(recipe: Recipe, source: str, images: LabelledImages) -> tuple[nn.Module, list[MappedTensor]]:
    """The recipe's float network with TorchVision's weights, and what happened to every tensor.

    Args:
        recipe: names the network.
        source: "torchvision" (the installed package fetches them), or the file of a state dict.
        images: a few of them determine the statistics of new norm layers.
    """
    spec = recipe.model
    given = source != "torchvision"
    state = read_state_dict(Path(source)) if given else torchvision_state(spec.name.partition("/")[2])
    batches: tuple[Tensor, ...] = torch.tensor_split(calibration_images(images), _CALIBRATION_PARTS)
    size, classes = spec.image_size, spec.num_classes
    return from_torchvision(spec.name, state, batches, num_classes=classes, image_size=size, source=source)


def _build(spec: ModelSpec) -> nn.Module:
    if spec.is_own:
        raise ConfigError(f"{shown(str(spec))}: no code that a recipe names is run; make the network and pass model=...")
    return build_model(spec.name, num_classes=spec.num_classes, in_channels=spec.in_channels, image_size=spec.image_size)


def calibration_images(train: LabelledImages) -> Tensor:
    """Normalized training images, evenly spaced, to initialize thresholds: 512 of CIFAR's size, fewer of larger ones."""
    _, height, width = train.shape
    count = max(32, min(CALIBRATION_IMAGES, CALIBRATION_IMAGES * 64 * 64 // (height * width)))
    step = max(1, len(train) // count)
    return train.normalized(train.pixels(torch.arange(0, len(train), step)[:count]))


@checked_arguments
def train(
    recipe: Recipe,
    out: Path,
    options: TrainOptions | None = None,
    *,
    splits: Splits | None = None,
    model: nn.Module | None = None,
    init: nn.Module | None = None,
    observer: Observer | None = None,
    progress: DownloadProgress | None = None,
) -> Iterator[PhaseResult]:
    """Train a recipe's phases one after the other; yields each when it ends. Finished phases in `out` are not trained again.

    Args:
        recipe: settings of the run.
        out: parent of the folders of phases, such as `out/4bit`.
        options: device, compilation, precision, whether to overwrite; the CPU unless given.
        splits: the data, if loaded already.
        model: the float network with fresh weights, if it is not one of `nbsnn.list_models()`; it is not changed.
        init: the network that the first phase starts from; random weights unless given. A float network is the teacher of
            phases that distil; from a quantized one only the phases of fewer bits are trained.
        observer: callbacks of each step and epoch; may stop the run.
        progress: of a download.
    """
    out, options = Path(out), options or TrainOptions()
    check_run(recipe, splits, init)
    folders = {bits: phase_folder(out, bits) for bits in phases_from(recipe, init)}
    if options.resume and not any(map(has_run, folders.values())):
        raise CheckpointError(f"{out} holds no run to resume; name its folder, or leave resume=True out to start one")
    overwrite = options.overwrite and not is_revived()  # by torchrun: then the files are from this run
    start = fingerprint(init) if init else ""
    done = {bits: None if overwrite else finished_phase(recipe, bits, folder, start) for bits, folder in folders.items()}
    to_run = [bits for bits, result in done.items() if result is None]
    if not overwrite:
        check_later_phases([folders[bits] for bits in to_run])
    teacher = None if init is None or read_plan(init) else init
    check_teacher(replace(recipe, phase={str(bits): recipe.phase[str(bits)] for bits in folders}), to_run, teacher)
    splits = splits or load_data(recipe.data, size=recipe.model.image_size, progress=progress)
    own, model = model, init or (new_model(recipe) if model is None else copied(model))
    if own is None:
        check_fit(recipe.model, splits.train, recipe.data.name)
    else:
        check_own_fit(own, splits.train, recipe.data.name)
        check_convertible(own, splits.train, recipe)
    recipe = with_classes(recipe, splits.train, [] if overwrite else folders.values())
    device = torch.device(options.device)
    test = evaluation_batches(splits.test.to(device), world=world())
    before: Path | None = None  # of the phase before, if it ended in an earlier process
    for bits, finished in done.items():
        phase = recipe.phase[str(bits)]
        if finished is None:
            model = next_form(model.cpu(), recipe, bits, calibration_images(splits.train))
            how = FitOptions(
                device=device, execution=options.execution(phase.epochs * len(splits.train)), save_every=options.save_every,
                overwrite=overwrite, start=start, title="float" if bits == FLOAT_BITS else f"{bits} bits",
            )  # fmt: skip
            if before is not None and not has_unfinished(folders[bits]):
                check_phase_before(before, splits, how)
            finished = fit(
                model, splits, recipe.until(bits), phase, out=folders[bits], options=how, observer=observer, teacher=teacher
            )
            for earlier in list(folders)[: list(folders).index(bits)]:
                forget_finished(folders[earlier])  # it can no longer be given more epochs: this phase started from it
            before = None
        else:
            before = folders[bits]
        last, best = (load_checkpoint(path, model=own).to(device) for path in (finished.last, finished.best))
        measured = evaluate(last, test)
        yield PhaseResult(bits, phase.epochs, finished, measured, measured if finished.best_is_last else evaluate(best, test))
        model = best
        if bits == FLOAT_BITS:
            teacher = best


def integer_form(
    quantized: nn.Module, images: LabelledImages, *, float_weight_bits: int = 8, membrane_bits: int = 32
) -> IntegerNetwork:
    """`lower` with the set's first image as the example and its normalization for 8-bit pixels.

    Args:
        quantized: result of `quantize`, on any device; the integer network is on the CPU.
        images: the set that the network was trained on.
        float_weight_bits, membrane_bits: as in `lower`.
    """
    example = images.normalized(images.pixels(slice(0, 1)))
    return lower(
        quantized, example, mean=images.mean, std=images.std, float_weight_bits=float_weight_bits, membrane_bits=membrane_bits
    )


def float_form(header: Mapping[str, Any]) -> nn.Module:
    """A float network of the architecture in a checkpoint's header, with random weights, in evaluation mode."""
    if header["model"] is None:
        raise ConfigError("the checkpoint names no architecture; its float form cannot be built")
    return _build(ModelSpec(**header["model"])).eval()


class FinetuneRun(NamedTuple):
    """Result of fine-tuning a checkpoint: the network, accuracies, and fields for its checkpoint and report."""

    result: FinetuneResult
    tested: Finetuned
    metrics: dict[str, Any]  # of the checkpoint of `result.spiking`
    figures: dict[str, Any]  # everything as plain values


def finetune_and_test(
    quantized: nn.Module,
    splits: Splits,
    spec: FinetuneSpec,
    *,
    source: str,
    progress: ProgressBar,
    on_change: Callable[[Change, SpikingNetwork, dict[str, Any]], None],
) -> FinetuneRun:
    """Fine-tune a quantized network for the schedule "fixed", and compare it with its source on the test images.

    Args:
        quantized: on any device; not changed.
        splits: training images, validation images to evaluate each change, and test images.
        spec: method and settings.
        source: names the checkpoint.
        progress: `progress(images, title)` is a context manager that yields the callback for `finetune` and
            `compare_finetuned`.
        on_change: called as in `finetune`, with the metrics for a checkpoint of the current network.
    """
    train, held_out, test = splits.train, splits.validation, splits.test
    known = {"checkpoint": source, "settings": spec.to_dict(), "train_images": len(train), "held_out_images": len(held_out)}

    def changed(change: Change, network: SpikingNetwork) -> None:
        on_change(change, network, _finetuned_metrics(known, {}) | {"held_out_top1": change.top1})

    with progress(images_to_see(quantized, train, held_out, spec), f"{spec.method} fine-tuning") as tell:
        result = finetune(quantized, train, held_out, spec, progress=tell, on_change=changed)
    with progress(3 * len(test), "testing") as tell:
        tested = compare_finetuned(quantized, result.spiking, test, progress=tell)
    figures = known | {"held_out": result.to_dict(), "test": asdict(tested)}
    return FinetuneRun(result, tested, _finetuned_metrics(known, asdict(tested)), figures)


def _finetuned_metrics(known: Mapping[str, Any], test: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of a fine-tuned checkpoint: `top1` is of its spiking form, `teacher_top1` of its source."""
    settings, images = known["settings"], known["train_images"]
    calibrated = settings["method"] == "calibrate"
    return {
        "finetuned_for": f"{settings['neuron']} fixed", "method": settings["method"], "weights_trained": settings["weights"],
        "top1": test.get("after_top1"), "top1_before": test.get("before_top1"), "teacher_top1": test.get("quantized_top1"),
        "train_images": min(images, settings["calibration_images"]) if calibrated else images, "source": known["checkpoint"],
    }  # fmt: skip
