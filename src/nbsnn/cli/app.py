"""The application that the verbs register with, and what they share: options, and how a checkpoint and its images are found."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from nbsnn import console, pipeline
from nbsnn.checkpoint import rebuild, recipe_of
from nbsnn.data import DATA_SETS, load_data
from nbsnn.data.images import LabelledImages, Splits
from nbsnn.errors import ConfigError, unknown
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.storage import program_from
from nbsnn.recipe import DataSpec, ModelSpec
from nbsnn.tensorfile import Header, read_tensors

app = typer.Typer(
    help="Train few-bit networks, run them as spiking networks in T = 2^b - 1 steps, and see exactly how far spikes are off.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

Checkpoint = Annotated[
    Path, typer.Argument(help="A checkpoint that nbsnn wrote, or a bundled network, zoo:NAME.", metavar="CHECKPOINT")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="cifar10, digits, imagenet, sample (bundled); by default the checkpoint's own."),
]
RootOption = Annotated[Path | None, typer.Option("--root", help="Where the data lies; unless given, the checkpoint's own.")]
SplitOption = Annotated[str, typer.Option("--split", help="test, validation or train.")]
LimitOption = Annotated[int, typer.Option("--limit", min=0, help="Look at so many images only; 0 is all.")]
NeuronOption = Annotated[str | None, typer.Option("--neuron", help="signed or unsigned.")]
ScheduleOption = Annotated[str | None, typer.Option("--schedule", help="fixed, settle or barrier.")]
BackendOption = Annotated[str, typer.Option("--backend", help="Of integer networks: auto, native or torch.")]


def default_folder(recipe: str) -> Path:
    """Where a run of a recipe lies unless another folder is named."""
    return Path("runs") / recipe.replace(":", "-").removesuffix(".toml")


def load(checkpoint: Path, device: str) -> tuple[nn.Module | IntegerNetwork, Header]:
    """A network of any form on a device, and the header of its file."""
    chosen = pipeline.pick_device(device)
    header, state = read_tensors(checkpoint)
    if header["form"] == "integer":
        return IntegerNetwork(program_from(header, state, source=str(checkpoint))).to(chosen), header
    return rebuild(header, state, source=str(checkpoint)).to(chosen), header


def data_spec(header: Header, data: str | None, root: Path | None) -> DataSpec:
    """The data set that the options name, or else the checkpoint's own."""
    recipe = recipe_of(header)
    spec = recipe.data if recipe else None
    name = data or (spec.name if spec else None)
    if name is None:
        raise ConfigError("the checkpoint names no data set; say --data cifar10, digits, imagenet or sample")
    if name not in DATA_SETS:
        raise ConfigError(unknown("data set", name, DATA_SETS))
    if spec is None or spec.name != name:
        spec = DataSpec(name, validation=DATA_SETS[name])
    return replace(spec, root=str(root or spec.root))


def load_splits(header: Header, spec: DataSpec) -> Splits:
    """The data set, if its images fit the network."""
    with console.download_progress() as progress:
        splits = load_data(spec, size=(header["model"] or {}).get("image_size"), progress=progress)
    if header["model"]:
        pipeline.check_fit(ModelSpec(**header["model"]), splits.test, spec.name)
    return splits


def images_for(header: Header, data: str | None, root: Path | None, split: str, limit: int) -> LabelledImages:
    """The images that the options name, or else those that the checkpoint was trained on."""
    if split not in ("test", "validation", "train"):
        raise ConfigError(unknown("split", split, ("test", "validation", "train")))
    images: LabelledImages = getattr(load_splits(header, data_spec(header, data, root)), split)
    return images.some(limit)
