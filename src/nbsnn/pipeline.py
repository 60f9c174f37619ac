"""The story on one page: data → train → convert → compare. The command line and the published scripts call this."""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbsnn.checkpoint import load_checkpoint, recipe_of
from nbsnn.data import choices, data_set, list_data_sets, load_data
from nbsnn.data.download import Progress
from nbsnn.data.files import printable
from nbsnn.data.images import LabelledImages, Splits, evaluation_batches
from nbsnn.data.photos import PhotoSet
from nbsnn.distributed import is_revived, local_rank, started_by_torchrun, world
from nbsnn.errors import CheckpointError, ConfigError
from nbsnn.evaluation.accuracy import Report, evaluate
from nbsnn.finite import check_network
from nbsnn.importers.torchvision import MappedTensor, from_torchvision, torchvision_state
from nbsnn.integer.lower import lower
from nbsnn.integer.network import IntegerNetwork
from nbsnn.models import build_model
from nbsnn.models.plain import PLAIN_NETS
from nbsnn.quant.quantize import read_plan
from nbsnn.recipe import FLOAT_BITS, ModelSpec, Recipe
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.tensorfile import read_header, read_torch_state
from nbsnn.training.execution import pick_execution
from nbsnn.training.folder import LAST_FILE, forget_finished, has_run
from nbsnn.training.history import FitResult, finished_phase
from nbsnn.training.loop import SAVE_EVERY, fit
from nbsnn.training.loss import check_teacher
from nbsnn.training.observer import Observer
from nbsnn.training.progressive import CALIBRATION_IMAGES, next_form
from nbsnn.training.state import identity

logger = logging.getLogger(__name__)

_CALIBRATION_PARTS = 4


@dataclass(frozen=True)
class PhaseResult:
    """A finished phase: its checkpoints, and the accuracy on the test images of the last and of the best epoch."""

    bits: int
    epochs: int
    fit: FitResult
    last: Report
    best: Report


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is this process's CUDA device, or else the CPU; `cuda` under torchrun is the one with the process's local rank.

    Raises:
        ConfigError: no such device, or torch does not see it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and started_by_torchrun():
        name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
        known = device.type in ("cpu", "cuda", "mps")
    except RuntimeError:
        known = False
    if not known:
        raise ConfigError(f"device={name}: choose auto, cpu, cuda, cuda:N or mps") from None
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # torch's: no such index, built without it, no such backend
        raise ConfigError(f"device={name}: torch sees no such device here; use device=cpu") from None
    return device


def phase_folder(out: Path, bits: int) -> Path:
    """Where a phase keeps its files."""
    return out / f"{bits}bit"


def new_model(recipe: Recipe) -> nn.Module:
    """The recipe's float network with fresh weights, decided by the seed."""
    torch.manual_seed(recipe.seed)
    return _build(recipe.model)


def pretrained_model(recipe: Recipe, source: str, images: LabelledImages) -> tuple[nn.Module, list[MappedTensor]]:
    """The recipe's float network with TorchVision's weights, and what became of every tensor.

    Args:
        recipe: names the network.
        source: "torchvision" (the installed package fetches them), or the file of a state dict.
        images: a few of them set the statistics of new norm layers.
    """
    spec = recipe.model
    given = source != "torchvision"
    state = read_torch_state(Path(source)) if given else torchvision_state(spec.name.partition("/")[2])
    batches: tuple[Tensor, ...] = torch.tensor_split(calibration_images(images), _CALIBRATION_PARTS)
    size, classes = spec.image_size, spec.num_classes
    return from_torchvision(spec.name, state, batches, num_classes=classes, image_size=size, source=source)


def _build(spec: ModelSpec) -> nn.Module:
    return build_model(spec.name, num_classes=spec.num_classes, in_channels=spec.in_channels, image_size=spec.image_size)


def check_fit(spec: ModelSpec, images: LabelledImages, name: str) -> None:
    """Refuse a data set whose images or classes do not fit a network; warn where labels may mean something else.

    Raises:
        ConfigError: other channels, another size where that matters, or more classes than the network tells apart.
    """
    channels, height, width = images.shape
    remedy = "choose other data"
    if channels != spec.in_channels:
        raise ConfigError(f"the network takes {spec.in_channels} channels, but {name} has {channels}; {remedy}")
    if spec.name in PLAIN_NETS and (height, width) != (spec.image_size, spec.image_size):
        raise ConfigError(f"the network takes images of {spec.image_size} pixels, but {name} has {height}×{width}; {remedy}")
    if len(images.classes) > spec.num_classes:
        raise ConfigError(
            f"the network tells {spec.num_classes} classes apart, but {name} has {len(images.classes)}; train one with "
            f"model.num_classes={len(images.classes)}, or {remedy}"
        )
    if len(images.classes) < spec.num_classes:
        logger.warning("%s has %d classes, the network %d: labels are places among the former", name, len(images.classes),
                       spec.num_classes)  # fmt: skip


def calibration_images(train: LabelledImages) -> Tensor:
    """Normalised training images, evenly spaced, from which thresholds start: 512 of CIFAR's size, fewer of larger ones."""
    _, height, width = train.shape
    count = max(32, min(CALIBRATION_IMAGES, CALIBRATION_IMAGES * 64 * 64 // (height * width)))
    step = max(1, len(train) // count)
    return train.normalized(train.pixels(torch.arange(0, len(train), step)[:count]))


def train(
    recipe: Recipe,
    out: Path,
    *,
    splits: Splits | None = None,
    init: nn.Module | None = None,
    device: torch.device | str = "cpu",
    compile: str = "auto",
    precision: str = "auto",
    save_every: float = SAVE_EVERY,
    observer: Observer | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Iterator[PhaseResult]:
    """Run a recipe's phases one after the other; yields each as it ends. Finished phases in `out` are not run again.

    Args:
        recipe: what to do.
        out: a folder per phase is made in it, such as `out/4bit`.
        splits: the data, if loaded already.
        init: the network that the first phase starts from; fresh unless given. A float one teaches phases that distil.
        compile: whether steps are compiled; `auto` decides by device and length.
        precision: of the forward pass; `auto` takes bfloat16 where the hardware multiplies it.
        save_every: seconds between training states within an epoch.
        progress: of a download.
        overwrite: train anew where results lie already.
        resume: insist that `out` holds a run to go on with; it is taken up in any case.
    """
    out = Path(out)
    if resume and overwrite:
        raise ConfigError("resume goes on with a run and overwrite begins it anew; give one of the two")
    if resume and not any(has_run(phase_folder(out, int(bits))) for bits in recipe.phase):
        raise CheckpointError(f"{out} holds no run to resume; name its folder, or leave resume=True out to start one")
    if recipe.data.name in list_data_sets() and not data_set(recipe.data.name).trains:
        known = choices(lambda data: data.trains)
        raise ConfigError(f"data.name={recipe.data.name}: these are test images; train on {known}")
    _check_start(recipe, init)
    overwrite = overwrite and not is_revived()  # by torchrun: then what lies there is this run's own
    start = identity(init) if init else ""
    done = {
        bits: None if overwrite else finished_phase(recipe, bits, phase_folder(out, bits), start)
        for bits in map(int, recipe.phase)
    }
    teacher = None if init is None or read_plan(init) else init
    check_teacher(recipe, [bits for bits, result in done.items() if result is None], teacher)
    if splits is not None and not isinstance(splits, Splits):
        raise ConfigError(f"splits is a {type(splits).__name__}; give nbsnn.Splits(train, validation, test)")
    splits = splits or load_data(recipe.data, size=recipe.model.image_size, progress=progress)
    check_fit(recipe.model, splits.train, recipe.data.name)
    recipe = with_classes(recipe, splits.train, [] if overwrite else [phase_folder(out, bits) for bits in done])
    model = init or new_model(recipe)
    test = evaluation_batches(splits.test.to(torch.device(device)), world=world())
    for bits, finished in done.items():
        phase = recipe.phase[str(bits)]
        if finished is None:
            model = next_form(model.cpu(), recipe, bits, calibration_images(splits.train))
            title = "float" if bits == FLOAT_BITS else f"{bits} bits"
            images = phase.epochs * len(splits.train)
            execution = pick_execution(torch.device(device), images, compile=compile, precision=precision)
            finished = fit(
                model, splits, recipe.until(bits), phase, out=phase_folder(out, bits), title=title, device=device,
                execution=execution, save_every=save_every, observer=observer, overwrite=overwrite, teacher=teacher,
                start=start,
            )  # fmt: skip
            for earlier in list(done)[: list(done).index(bits)]:
                forget_finished(phase_folder(out, earlier))  # it cannot be given more epochs any more: this one began with it
        last, best = (load_checkpoint(path).to(device) for path in (finished.last, finished.best))
        measured = evaluate(last, test)
        yield PhaseResult(bits, phase.epochs, finished, measured, measured if finished.best_is_last else evaluate(best, test))
        model = best
        if bits == FLOAT_BITS:
            teacher = best


def with_classes(recipe: Recipe, images: LabelledImages, folders: Iterable[Path]) -> Recipe:
    """The recipe with the names of its classes, if those are read from folders, so that its checkpoints say them.

    Raises:
        ConfigError: a checkpoint in one of the folders was trained with others.
    """
    if not isinstance(images, PhotoSet):
        return recipe
    for last in (folder / LAST_FILE for folder in folders):
        header = read_header(last)  # None of a damaged one: the phase's training state may restore it
        check_same_classes(recipe_of(header) if header else None, images, str(last))
    return replace(recipe, data=replace(recipe.data, classes=images.classes))


def check_same_classes(trained: Recipe | None, images: LabelledImages, source: str) -> None:
    """Refuse images whose classes are not those, by name and order, that a checkpoint's recipe says it was trained with.

    Raises:
        ConfigError: names the classes that only one of the two has.
    """
    names = trained.data.classes if trained else ()
    if not names or names == images.classes:
        return
    lost, new = ([name for name in a if name not in b][:5] for a, b in ((names, images.classes), (images.classes, names)))
    found = [f"{which} {', '.join(map(printable, some))}" for which, some in (("without", lost), ("with", new)) if some]
    raise ConfigError(
        f"{source} was trained with {len(names)} classes, but the data are {' and '.join(found) or 'in another order'}; "
        "restore the folders, or train in another folder"
    )


def _check_start(recipe: Recipe, start: nn.Module | None) -> None:
    if isinstance(start, SpikingNetwork):
        raise ConfigError("the start is a spiking network; give the quantized or the float one that it was made from")
    if start is not None:
        check_network(start, ConfigError, source="the start")
    spec = getattr(start, "model_spec", None)
    if spec is not None and spec != recipe.model:
        raise ConfigError(
            f"the start is {spec}, but the recipe trains {recipe.model}; give a checkpoint of that, or another recipe"
        )


def integer_form(
    quantized: nn.Module, images: LabelledImages, *, float_weight_bits: int = 8, origin: Mapping[str, Any] | None = None
) -> IntegerNetwork:
    """`lower` with the set's first image as the example and its normalisation for 8-bit pixels.

    Args:
        quantized: result of `quantize`, anywhere; the result lies on the CPU.
        images: the set that the network was trained on.
        float_weight_bits: as in `lower`.
        origin: what a file of the network says of its source: recipe, model.
    """
    on_cpu = copy.deepcopy(quantized).cpu().eval()
    example = images.normalized(images.pixels(slice(0, 1))).to(next(on_cpu.parameters()))
    network = lower(on_cpu, example, mean=images.mean, std=images.std, float_weight_bits=float_weight_bits)
    return IntegerNetwork(replace(network.program, origin=dict(origin or {})))


def float_form(header: Mapping[str, Any]) -> nn.Module:
    """A float network of the architecture that a checkpoint's header names, with fresh weights, in evaluation mode."""
    if header["model"] is None:
        raise ConfigError("the checkpoint names no architecture; its float form cannot be built")
    return _build(ModelSpec(**header["model"])).eval()
