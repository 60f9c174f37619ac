"""Load a checkpoint's network in the form that a verb takes, and its images."""

import logging
from dataclasses import replace
from pathlib import Path

from torch import nn

from nbsnn import console
from nbsnn.checkpoint import form_of, rebuild, recipe_of
from nbsnn.data import choices, data_set, load_data
from nbsnn.data.images import LabelledImages, Splits
from nbsnn.device import pick_device
from nbsnn.errors import ConfigError, unknown
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.storage import program_from
from nbsnn.quant.layers import QuantReLU
from nbsnn.recipe import DataSpec, ModelSpec
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.spiking.schedules import check_timesteps
from nbsnn.tensorfile import Header, read_network
from nbsnn.training.checks import check_fit

logger = logging.getLogger(__name__)


def load(checkpoint: Path, device: str) -> tuple[nn.Module | IntegerNetwork, Header]:
    """A network of any form on a device, and the header of its file."""
    chosen = pick_device(device)
    header, state = read_network(checkpoint)
    if header["form"] == "integer":
        return IntegerNetwork(program_from(header, state, source=str(checkpoint))).to(chosen), header
    return rebuild(header, state, source=str(checkpoint)).to(chosen), header


def chosen_data(header: Header, *, data: str | None, root: Path | None, download: bool) -> DataSpec:
    """The data set in the options, or else the checkpoint's."""
    recipe = recipe_of(header)
    spec = recipe.data if recipe else None
    name = data or (spec.name if spec else None)
    if name is None:
        raise ConfigError(f"the checkpoint names no data set; give --data {choices()}")
    found = data_set(name)
    if spec is None or spec.name != name:
        classes = spec.classes if spec and found.takes_classes else ()
        spec = DataSpec(name, validation=found.validation, classes=classes)
    if found.takes_classes and not spec.classes:
        where = root or spec.root
        logger.warning("the checkpoint does not name its classes; labels are indices of the class folders of %s", where)
    # This machine may lack the loader of the training run.
    return replace(spec, root=str(root or spec.root), download=download or spec.download, loader="auto")


def load_splits(header: Header, spec: DataSpec) -> Splits:
    """The data set, if its images fit the network."""
    with console.download_progress() as progress:
        splits = load_data(spec, size=(header["model"] or {}).get("image_size"), progress=progress)
    if header["model"]:
        check_fit(ModelSpec(**header["model"]), splits.test, spec.name)
    return splits


def images_for(
    header: Header, split: str, limit: int, *, data: str | None, root: Path | None, download: bool
) -> LabelledImages:
    """The images in the options, or else those that the checkpoint was trained on."""
    if split not in ("test", "validation", "train"):
        raise ConfigError(unknown("split", split, ("test", "validation", "train")))
    images: LabelledImages = getattr(load_splits(header, chosen_data(header, data=data, root=root, download=download)), split)
    return images.some(limit)


def load_start(checkpoint: Path) -> nn.Module:
    """The network that training starts from, on the CPU; the library says which ones it takes."""
    model, _ = load(checkpoint, "cpu")
    if isinstance(model, IntegerNetwork):
        raise ConfigError(f"{checkpoint} holds an integer network; training starts from the one that it was lowered from")
    return model


def only_quantized(model: nn.Module | IntegerNetwork, checkpoint: Path, verb: str) -> nn.Module:
    """The network; raises an error unless it is quantized."""
    if isinstance(model, IntegerNetwork):
        raise ConfigError(f"{checkpoint} holds an integer network; {verb} takes a quantized one: name what it was lowered from")
    form = form_of(model)
    if form != "quantized":
        remedy = "quantize it with nbsnn train --init first" if form == "float" else "name the one that it was made from"
        raise ConfigError(f"{checkpoint} holds a {form} network; {verb} takes a quantized one: {remedy}")
    return model


def check_t(model: nn.Module | IntegerNetwork, wanted: int | None) -> None:
    """Raise an error for another T than that of the network's bits."""
    levels = [m.levels for m in model.modules() if isinstance(m, QuantReLU)] if isinstance(model, nn.Module) else []
    check_timesteps(wanted, model.timesteps if isinstance(model, SpikingNetwork | IntegerNetwork) else max(levels, default=0))
