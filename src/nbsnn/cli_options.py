"""Options that several verbs share, and the reading of what they name."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from nbsnn import console, pipeline
from nbsnn.checkpoint import Header, read_tensors, rebuild
from nbsnn.data import DATA_SETS, load_data
from nbsnn.data.images import Splits
from nbsnn.errors import ConfigError, unknown
from nbsnn.recipe import DataSpec, recipe_from_dict

Checkpoint = Annotated[Path, typer.Argument(help="A checkpoint that nbsnn wrote.", metavar="CHECKPOINT")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")]
DataOption = Annotated[str | None, typer.Option("--data", help="cifar10 or digits; unless given, the checkpoint's own.")]
RootOption = Annotated[Path | None, typer.Option("--root", help="Where the data lies; unless given, the checkpoint's own.")]
SplitOption = Annotated[str, typer.Option("--split", help="test, validation or train.")]
LimitOption = Annotated[int, typer.Option("--limit", min=0, help="Look at the first so many images only; 0 is all.")]


def load_form(checkpoint: Path, device: str) -> tuple[nn.Module, Header]:
    """The network of a checkpoint, on a device, and its header."""
    chosen = pipeline.pick_device(device)
    header, state = read_tensors(checkpoint)
    return rebuild(header, state, source=str(checkpoint)).to(chosen), header


def data_spec(header: Header, data: str | None, root: Path | None) -> DataSpec:
    """The data set that the options name, or else the checkpoint's own."""
    spec = recipe_from_dict(header["recipe"]).data if header["recipe"] else None
    name = data or (spec.name if spec else None)
    if name is None:
        raise ConfigError("the checkpoint names no data set; say --data cifar10 or --data digits")
    if name not in DATA_SETS:
        raise ConfigError(unknown("data set", name, DATA_SETS))
    if spec is None or spec.name != name:
        spec = DataSpec(name, validation=DATA_SETS[name])
    return replace(spec, root=str(root or spec.root))


def load_splits(header: Header, spec: DataSpec) -> Splits:
    """The data set, if its images fit the network."""
    with console.download_progress() as progress:
        splits = load_data(spec, progress=progress)
    found = splits.test.images.shape[1]
    channels = (header["model"] or {}).get("in_channels", found)
    if found != channels:
        raise ConfigError(f"the network takes {channels} channels, but {spec.name} has {found}; choose other --data")
    return splits
