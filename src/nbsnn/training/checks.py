"""Checks before training starts: settings, networks, images and processes must fit each other."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from nbsnn.checkpoint import recipe_of
from nbsnn.data import choices, data_set, list_data_sets
from nbsnn.data.files import printable
from nbsnn.data.images import Batches, LabelledImages, Splits
from nbsnn.data.photos import PhotoSet
from nbsnn.distributed import max_over_ranks, wait_for_all, warn, world
from nbsnn.dry_run import check
from nbsnn.errors import CheckpointError, ConfigError, NbsnnError, shown
from nbsnn.finite import check_network
from nbsnn.inputs import in_one_line, to_network
from nbsnn.models.plain import PLAIN_NETS
from nbsnn.quant.layers import QuantReLU
from nbsnn.quant.plans import read_plan
from nbsnn.recipe import FLOAT_BITS, ModelSpec, Phase, Recipe
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.structure import pick_output
from nbsnn.surgery import evaluation_mode
from nbsnn.tensorfile import read_header
from nbsnn.training.conditions import compare_conditions, conditions_of
from nbsnn.training.folder import FINISHED_FILE, LAST_FILE, has_unfinished
from nbsnn.training.options import FitOptions
from nbsnn.training.state import TrainingState

logger = logging.getLogger(__name__)

# ---------------------------------------------------------------------------------------------------------------- a run


def check_run(recipe: Recipe, splits: Splits | None, start: nn.Module | None) -> None:
    """Raise an error for data without training images, and for a network that the recipe cannot start from.

    Args:
        recipe: of the run.
        splits: given images, instead of the recipe's.
        start: the given network, instead of fresh weights.
    Raises:
        ConfigError: says what to give instead.
    """
    if splits is not None and not isinstance(splits, Splits):
        raise ConfigError(f"splits is a {type(splits).__name__}; give nbsnn.Splits(train, validation, test)")
    if recipe.data.name in list_data_sets() and not data_set(recipe.data.name).trains:
        raise ConfigError(f"data.name={recipe.data.name}: these are test images; train on {choices(lambda data: data.trains)}")
    if str(FLOAT_BITS) in list(recipe.phase)[1:]:
        raise ConfigError(f"phase {FLOAT_BITS} must be the first: a quantized network does not become float again")
    if isinstance(start, SpikingNetwork):
        raise ConfigError("the start is a spiking network; give the quantized or the float one that it was made from")
    if start is not None:
        check_network(start, ConfigError, source="the start")
    spec = getattr(start, "model_spec", None)
    if spec is not None and spec.header() != recipe.model.header():
        raise ConfigError(
            f"the start is {spec}, but the recipe trains {recipe.model}; give a checkpoint of that, or another recipe"
        )


def phases_from(recipe: Recipe, start: nn.Module | None) -> list[int]:
    """Bits of the phases that a run trains: all phases, or with a quantized start those of fewer bits.

    Args:
        recipe: of the run.
        start: the network that the run starts from; with a quantized one only phases of fewer bits are trained or, if the
            recipe has none, the phase of the same bits.
    """
    phases = [int(bits) for bits in recipe.phase]
    own = max((m.bits for m in start.modules() if isinstance(m, QuantReLU)), default=FLOAT_BITS) if start is not None else None
    if own is None or own == FLOAT_BITS:
        return phases
    kept = [bits for bits in phases if bits < own] or [bits for bits in phases if bits == own] or phases
    if kept != phases:
        names, left = (", ".join(map(str, some)) for some in (kept, [bits for bits in phases if bits not in kept]))
        warn(logger, "the start has %d bits: training phase %s from it, skipping %s of the recipe", own, names, left)
    return kept


def check_phase_before(folder: Path, splits: Splits, options: FitOptions) -> None:
    """Raise an error if a phase would start from one that was trained in another precision or on other images.

    Args:
        folder: of the phase before, finished in an earlier process; without its last training state nothing is checked.
        splits, options: of the phase to train.
    Raises:
        CheckpointError: names the condition. Other changes, which affect the rounding of sums, are logged in one line.
    """
    state = read_header(folder / FINISHED_FILE) or {}
    then = {name: value for name, value in state.get("conditions", {}).items() if name not in ("compiled", "first epoch")}
    if then:
        compare_conditions(then, conditions_of(splits, options.execution, torch.device(options.device)), folder)


def check_later_phases(folders: Sequence[Path]) -> None:
    """Raise an error now that would otherwise occur after the first of the phases to run.

    Args:
        folders: of the phases to run, in order.
    Raises:
        CheckpointError: a later phase is finished, with different settings.
    """
    for folder in folders[1:]:
        if (folder / LAST_FILE).is_file() and not has_unfinished(folder):
            raise CheckpointError(
                f"{folder} holds a finished phase, of another recipe or start, and {folders[0].name} before it is to be trained"
                "; choose another folder, or set overwrite=True to train all phases from scratch"
            )


def check_teacher(recipe: Recipe, to_run: Sequence[int], start: nn.Module | None) -> None:
    """Raise an error for a recipe that distils without a float network as the teacher.

    Args:
        recipe: its float phase, if it has one, trains the teacher.
        to_run: bits of the phases that are not finished.
        start: the float network that the run starts from, if any.
    Raises:
        ConfigError: neither of the two, and an unfinished phase distils.
    """
    pupils = [bits for bits in to_run if recipe.phase[str(bits)].distill]
    if pupils and start is None and str(FLOAT_BITS) not in recipe.phase:
        raise ConfigError(
            f"phase.{pupils[0]}.distill={recipe.phase[str(pupils[0])].distill:g}: the run has no float net to teach; "
            f"begin with phase {FLOAT_BITS}, or give a float network as init=START"
        )


def check_fit(spec: ModelSpec, images: LabelledImages, name: str) -> None:
    """Raise an error for a data set whose images or classes do not fit a network; warn if labels may differ.

    Raises:
        ConfigError: other channels, another size if that matters, or more classes than the network has.
    """
    channels, height, width = images.shape
    remedy = "choose other data"
    if channels != spec.in_channels:
        raise ConfigError(f"the network takes {spec.in_channels} channels, but {name} has {channels}; {remedy}")
    if spec.name in PLAIN_NETS and (height, width) != (spec.image_size, spec.image_size):
        raise ConfigError(f"the network takes images of {spec.image_size} pixels, but {name} has {height}×{width}; {remedy}")
    if len(images.classes) > spec.num_classes:
        raise ConfigError(
            f"the network has {spec.num_classes} classes, but {name} has {len(images.classes)}; train one with "
            f"model.num_classes={len(images.classes)}, or {remedy}"
        )
    if len(images.classes) < spec.num_classes:
        logger.warning("%s has %d classes, the network %d: labels are indices of the former", name, len(images.classes),
                       spec.num_classes)  # fmt: skip


def check_own_fit(network: nn.Module, images: LabelledImages, name: str, *, output: str | int | None = None) -> None:
    """Raise an error for an own network that does not make a row of class scores of the images; try one of them.

    Args:
        output: key or index of the scores in a result of several tensors.
    Raises:
        ConfigError: says what the network takes or gives instead.
    """
    image = images.normalized(images.pixels(slice(0, 1)))
    try:
        with evaluation_mode(network), torch.no_grad(), in_one_line(image):
            given = network(to_network(image, network))
            scores = given if output is None else pick_output(given, output)
    except NbsnnError as error:
        if output is not None and str(error).startswith("output="):
            raise
        raise ConfigError(f"{error} (of {name}); set data.image_size and data.channels to what it takes") from None
    except Exception as error:  # of the user's forward
        reason = shown(f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise ConfigError(f"the network does not run on one image of {name}, {list(image.shape)}: {reason}") from None
    if not isinstance(scores, Tensor) or scores.dim() != 2:
        found = f"{list(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        choice = (
            "" if isinstance(given, Tensor) else ", or choose them with output=, which quantize, convert, lower and eval take"
        )
        raise ConfigError(
            f"the network gives {found} for one image of {name}; return class scores, a tensor [B, classes]{choice}"
        )
    if scores.shape[1] < len(images.classes):
        raise ConfigError(
            f"the network tells {scores.shape[1]} classes apart, but {name} has {len(images.classes)}; give it as many outputs"
        )


def check_convertible(network: nn.Module, images: LabelledImages, recipe: Recipe) -> None:
    """Raise an error for an own network that could not be quantized, converted and lowered after its training.

    Raises:
        ConfigError: names the first place, its remedy, and how many more there are.
    """
    quantized = [int(bits) for bits in recipe.phase if int(bits) != FLOAT_BITS]
    if not quantized or read_plan(network):
        return
    image = to_network(images.normalized(images.pixels(slice(0, 1))), network)
    refused = [found for found in check(network, image, spec=recipe.spec(quantized[0])) if found.status == "refused"]
    if refused:
        more = f" (and {len(refused) - 1} more, which nbsnn.check lists)" if len(refused) > 1 else ""
        raise ConfigError(f"the network cannot be converted after training: {refused[0]}{more}")


def with_classes(recipe: Recipe, images: LabelledImages, folders: Iterable[Path]) -> Recipe:
    """The recipe with the names of its classes, if they are read from folders, and computed mean and std, for checkpoints.

    Raises:
        ConfigError: a checkpoint in one of the folders was trained with other classes.
    """
    if not isinstance(images, PhotoSet):
        return recipe
    for last in (folder / LAST_FILE for folder in folders):
        header = read_header(last)  # None if damaged: the phase's training state may restore it
        check_same_classes(recipe_of(header) if header else None, images, str(last))
    data = replace(recipe.data, classes=images.classes)
    return replace(recipe, data=replace(data, mean=images.mean, std=images.std) if data.normalization == "computed" else data)


def check_same_classes(trained: Recipe | None, images: LabelledImages, source: str) -> None:
    """Raise an error for images whose classes differ, in name or order, from those in a checkpoint's recipe.

    Raises:
        ConfigError: names the classes that only one of the two has.
    """
    then = trained.data if trained else None
    if then and then.mean and (then.mean, then.std) != (images.mean, images.std):
        kept = " ".join(
            f"data.{name}={','.join(map(str, values))}" for name, values in (("mean", then.mean), ("std", then.std))
        )
        raise ConfigError(f"{source} was trained with another mean and std, of other images; restore those, or set {kept}")
    names = then.classes if then else ()
    if not names or names == images.classes:
        return
    lost, new = ([name for name in a if name not in b][:5] for a, b in ((names, images.classes), (images.classes, names)))
    found = [f"{which} {', '.join(map(printable, some))}" for which, some in (("without", lost), ("with", new)) if some]
    raise ConfigError(
        f"{source} was trained with {len(names)} classes, but the data are {' and '.join(found) or 'in another order'}; "
        "restore the folders, or train in another folder"
    )


# -------------------------------------------------------------------------------------------------------------- a phase


def training_batches(images: LabelledImages, recipe: Recipe, epoch: int) -> Batches:
    """The batches of an epoch, determined by seed and epoch; a process's share of each."""
    data = recipe.data
    return Batches(
        images, data.batch_size, shuffle=True, augment=data.augment, seed=recipe.seed, epoch=epoch, world=world()
    )  # fmt: skip


def check_phase(model: nn.Module, splits: Splits, recipe: Recipe, phase: Phase, options: FitOptions) -> None:
    """Raise an error for a phase that cannot be trained with these options.

    Raises:
        ConfigError: names the setting and a valid value, or the network's tensor that is not finite.
    """
    check_network(model, ConfigError, source="the network to train")
    if options.first_epoch >= phase.epochs:
        raise ConfigError(f"first_epoch={options.first_epoch}: the phase has {phase.epochs} epochs; give it more")
    size, accumulate, processes = recipe.data.batch_size, recipe.optim.accumulate, world().size
    parts = processes * accumulate
    if size % processes or size < 2 * parts:  # batch norm needs at least two images in every part, and processes equal shares
        raise ConfigError(
            f"data.batch_size={size}: is shared by {processes} processes in {accumulate} parts each; "
            f"choose a multiple of {processes} from {2 * parts}"
        )
    if size > len(splits.train):  # one small batch would be trained at the learning rate of a large one
        most = len(splits.train) - len(splits.train) % processes
        raise ConfigError(f"data.batch_size={size}: larger than the training set; choose {most} at most")
    device = torch.device(options.device)
    if options.execution.cuda_graph and (device.type != "cuda" or processes > 1):
        raise ConfigError(
            f"cuda_graph=True: steps are captured by one process on a CUDA device, not by {processes} on {device}; leave it out"
        )


def check_same_folder(path: Path, state: TrainingState) -> None:
    """Check that processes on several machines share one folder; otherwise each would resume from another state.

    Args:
        path: of the training state that was just written.
        state: of this process.
    """
    wait_for_all()
    here = torch.tensor([int(path.is_file()), state.epoch, state.step])
    low, high = -max_over_ranks(-here), max_over_ranks(here)
    if not low[0] or not low.equal(high):
        raise ConfigError(f"{path.parent}: not all processes see the same files there; choose a folder that all machines share")
