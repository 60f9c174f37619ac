"""Checks of a run and of a phase before training starts: settings, data, and processes that must agree."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from nbsnn.data import choices, data_set, list_data_sets
from nbsnn.data.images import Batches, LabelledImages, Splits
from nbsnn.distributed import max_over_ranks, wait_for_all, warn, world
from nbsnn.errors import CheckpointError, ConfigError
from nbsnn.finite import check_network
from nbsnn.quant.layers import QuantReLU
from nbsnn.recipe import FLOAT_BITS, Phase, Recipe
from nbsnn.spiking.network import SpikingNetwork
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
