"""Load a checkpoint's network in the form that a verb takes, and its images."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nbsnn import console
from nbsnn.checkpoint import describe, form_of, rebuild, recipe_of
from nbsnn.cli.own import Own
from nbsnn.data import choices, data_set, list_data_sets, load_data
from nbsnn.data.images import LabelledImages, Splits
from nbsnn.device import pick_device
from nbsnn.errors import ConfigError, shown, unknown
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.storage import program_from
from nbsnn.quant.layers import QuantReLU
from nbsnn.recipe import DataSpec, ModelSpec, Recipe
from nbsnn.recipes import load_recipe
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.spiking.schedules import check_timesteps
from nbsnn.tensorfile import Header, read_network
from nbsnn.training.matching import check_fit, check_own_fit

logger = logging.getLogger(__name__)


def load(checkpoint: Path | None, device: str, own: Own = Own()) -> tuple[nn.Module | IntegerNetwork, Header]:  # noqa: B008
    """A network of any form on a device, and the header of its file; the float network of --model without a file."""
    chosen = pick_device(device)
    if checkpoint is None:
        network = own.made()
        return network.to(chosen).eval(), describe(network)
    if own.state:
        raise ConfigError(f"{checkpoint} and --state {own.state} both hold weights; give one of them")
    header, state = read_network(checkpoint)
    if header["form"] == "integer":
        return IntegerNetwork(program_from(header, state, source=str(checkpoint))).to(chosen), header
    model = own.network(check_named(header, checkpoint, own))
    return rebuild(header, state, source=str(checkpoint), model=model).to(chosen), header


def spec_of(header: Header) -> ModelSpec | None:
    """What a header records of how its network is made."""
    return ModelSpec(**header["model"]) if header["model"] else None


def name_of(header: Header) -> str:
    """The name of a network for its user."""
    spec = spec_of(header)
    return "own network" if spec is None else str(spec) if spec.is_own else spec.name


def check_named(header: Header, checkpoint: Path, own: Own) -> ModelSpec | None:
    """The same; raises an error for an own network that --model does not name: a file must not choose what code runs."""
    spec = spec_of(header)
    if own.name is None and (spec is None or spec.needs_code):
        made = f"made by {shown(str(spec))}" if spec else "your own network, and the file does not say what makes it"
        name = shown(spec.name) if spec else "MODULE:FUNCTION"
        raise ConfigError(f"{checkpoint} is {made}; reading a file runs no code that it names: to run that, add --model {name}")
    return spec


def chosen_data(header: Header, *, data: str | None, root: Path | None, download: bool) -> DataSpec:
    """The data set in the options, or else the checkpoint's."""
    spec = data_of(recipe_of(header))
    if data and data.endswith(".toml"):
        known = spec.classes if spec else ()
        spec, data = data_of(load_recipe(data)), None
        spec = spec and replace(spec, classes=spec.classes or known)
    name = data or (spec.name if spec else None)
    if name is None:
        raise ConfigError(f"the checkpoint names no data set; give --data {choices()}")
    found = data_set(name)
    if spec is None or spec.name != name:
        classes = spec.classes if spec and found.takes_classes else ()
        spec = DataSpec(name, validation=found.validation, classes=classes)
    if found.takes_classes and not spec.classes and "content_hash" in header:  # from a file
        where = root or spec.root
        logger.warning("the checkpoint does not name its classes; labels are indices of the class folders of %s", where)
    # This machine may lack the loader of the training run.
    return replace(spec, root=str(root or spec.root), download=download or spec.download, loader="auto")


def data_of(recipe: Recipe | None) -> DataSpec | None:
    """The data of a recipe; of image files with the size that they get."""
    if recipe is None:
        return None
    known = recipe.data.name in list_data_sets()  # else it came from a package that this machine may lack
    if not known or not data_set(recipe.data.name).takes_classes:
        return recipe.data
    return replace(recipe.data, image_size=recipe.data.image_size or recipe.model.image_size)


def recipe_for(header: Header, data: str | None) -> Recipe | None:
    """The recipe to record with a network that is made from another: that of its file, or the one that --data names."""
    if not (data and data.endswith(".toml")):
        return recipe_of(header)
    recipe = load_recipe(data)
    return replace(recipe, model=spec_of(header) or recipe.model, data=data_of(recipe) or recipe.data)


def load_splits(
    header: Header,
    spec: DataSpec,
    network: nn.Module | IntegerNetwork | None = None,
    *,
    output: str | int | None = None,
) -> Splits:
    """The data set, if its images fit the network, which is needed for an own one only; `output` chooses its class scores."""
    with console.download_progress() as progress:
        splits = load_data(spec, size=(header["model"] or {}).get("image_size"), progress=progress)
    model = spec_of(header)
    if model and not model.is_own:
        check_fit(model, splits.test, spec.name)
    elif isinstance(network, nn.Module):
        check_own_fit(network, splits.test, spec.name, output=output)
    return splits


def images_for(
    header: Header,
    split: str,
    limit: int,
    *,
    data: str | None,
    root: Path | None,
    download: bool,
    network: nn.Module | IntegerNetwork | None = None,
    output: str | int | None = None,
) -> LabelledImages:
    """The images in the options, or else those that the checkpoint was trained on; other arguments as in `load_splits`."""
    if split not in ("test", "validation", "train"):
        raise ConfigError(unknown("split", split, ("test", "validation", "train")))
    spec = chosen_data(header, data=data, root=root, download=download)
    images: LabelledImages = getattr(load_splits(header, spec, network, output=output), split)
    return images.some(limit)


class Example(NamedTuple):
    """What an integer network is made with: an image, and the normalization of 8-bit pixels."""

    image: Tensor
    mean: Sequence[float] | None
    std: Sequence[float] | None


def example_for(
    header: Header, network: nn.Module | IntegerNetwork, *, data: str | None, root: Path | None, download: bool
) -> Example:
    """The first image of the data set in the options, or else in the checkpoint; zeros if these say enough without the data.

    An imported network that says the size of its images needs no data: they are normalized as its source says.
    """
    imported = spec_of(header)
    if data is None and not header.get("recipe") and imported is not None and imported.is_imported and header.get("spiking"):
        return Example(torch.zeros(1, *header["spiking"]["image_shape"]), None, None)
    spec, model = chosen_data(header, data=data, root=root, download=download), spec_of(header)
    known = (spec.mean, spec.std) if spec.mean else data_set(spec.name).normalization
    if known and model and not model.is_own and len(known[0]) == model.in_channels:
        return Example(torch.zeros(1, model.in_channels, model.image_size, model.image_size), *known)
    images = images_for(header, "test", 1, data=data, root=root, download=download, network=network)
    return Example(images.normalized(images.pixels(slice(0, 1))), images.mean, images.std)


def load_start(checkpoint: Path, model: nn.Module | None) -> nn.Module:
    """The network that training starts from, on the CPU; `model` is the run's own network, if it has one."""
    header, state = read_network(checkpoint)
    if header["form"] == "integer":
        raise ConfigError(f"{checkpoint} holds an integer network; training starts from the one that it was lowered from")
    check_named(header, checkpoint, Own("given") if model is not None else Own())
    return rebuild(header, state, source=str(checkpoint), model=model)


def only_quantized(model: nn.Module | IntegerNetwork, checkpoint: Path | None, verb: str) -> nn.Module:
    """The network; raises an error unless it is quantized."""
    if checkpoint is None:
        raise ConfigError(f"{verb} takes a quantized network, but --model makes a float one: run nbsnn quantize first")
    if isinstance(model, IntegerNetwork):
        raise ConfigError(f"{checkpoint} holds an integer network; {verb} takes a quantized one: name what it was lowered from")
    form = form_of(model)
    if form != "quantized":
        remedy = (
            "quantize it first, nbsnn quantize or train --init" if form == "float" else "name the one that it was made from"
        )
        raise ConfigError(f"{checkpoint} holds a {form} network; {verb} takes a quantized one: {remedy}")
    return model


def check_t(model: nn.Module | IntegerNetwork, wanted: int | None) -> None:
    """Raise an error for another T than that of the network's bits."""
    levels = [m.levels for m in model.modules() if isinstance(m, QuantReLU)] if isinstance(model, nn.Module) else []
    check_timesteps(wanted, model.timesteps if isinstance(model, SpikingNetwork | IntegerNetwork) else max(levels, default=0))
