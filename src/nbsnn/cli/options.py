"""Options and arguments that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    Path, typer.Argument(help="A checkpoint that nbsnn wrote, or a bundled network, zoo:NAME.", metavar="CHECKPOINT")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="cifar10, digits, folder, imagenet, sample (bundled); by default the checkpoint's own."),
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
