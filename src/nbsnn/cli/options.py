"""Options and arguments shared by several verbs, and checks of ranges."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from nbsnn.errors import ConfigError
from nbsnn.recipe import MOST_SEED

MANY = 1_000_000_000


def between(least: float, most: float = MANY) -> Callable[[Any, Any, Any], Any]:
    """The callback of an option with a range of valid numbers; nan is never valid."""

    def check(context: typer.Context, option: typer.CallbackParam, value: Any) -> Any:
        if value is not None and not least <= value <= most:
            raise ConfigError(f"{option.opts[0]} {value}: must be {least} or more, up to {most}")
        return value

    return check


Checkpoint = Annotated[
    Path | None, typer.Argument(help="A checkpoint written by nbsnn, or a bundled network, zoo:NAME.", metavar="CHECKPOINT")
]
QuantizedCheckpoint = Annotated[
    Path, typer.Argument(help="A quantized checkpoint written by nbsnn, or a bundled network, zoo:NAME.", metavar="CHECKPOINT")
]
OwnOption = Annotated[
    str | None,
    typer.Option("--model", metavar="MODULE:FUNCTION", help="The function that makes your own network, such as model:net."),
]
OwnArgsOption = Annotated[
    str | None,
    typer.Option("--model-args", metavar="JSON", help="Its arguments, such as '{\"num_classes\": 10}'; by default as on file."),
]
StateOption = Annotated[
    Path | None, typer.Option("--state", help="State dict of the float network: .pt, .pth or .safetensors.")
]
RecipeOption = Annotated[str, typer.Option("--recipe", "-r", help="A name of 'nbsnn recipes', or a TOML file.")]
SetOption = Annotated[
    list[str],
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="A setting of the recipe, such as phase.4.epochs=10; repeatable."),
]
SeedOption = Annotated[int, typer.Option("--seed", callback=between(0, MOST_SEED), help="Of weights, order and augmentation.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
BatchOption = Annotated[int, typer.Option("--batch-size", "-b", callback=between(1), help="Images at a time, 1 or more.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for scripts.")]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="cifar10, digits, folder, imagenet, sample, or a recipe's TOML file; by default as on file."),
]
RootOption = Annotated[
    Path | None, typer.Option("--root", help="Folder of the data; by default that of the recipe or checkpoint.")
]
DownloadOption = Annotated[bool, typer.Option("--download", help="Download the data if it is missing.")]
SplitOption = Annotated[str, typer.Option("--split", help="test, validation or train.")]
LimitOption = Annotated[int, typer.Option("--limit", callback=between(0), help="Use the first N images only; 0 is all.")]
ComparedOption = Annotated[
    int, typer.Option("--fidelity-images", callback=between(1), help="Images compared neuron by neuron, 1 or more.")
]
NeuronOption = Annotated[str | None, typer.Option("--neuron", help="signed or unsigned.")]
ScheduleOption = Annotated[str | None, typer.Option("--schedule", help="fixed, settle or barrier.")]
TimestepsOption = Annotated[
    int | None,
    typer.Option("--timesteps", "-T", callback=between(1), help="Check T, which the bits determine: T = 2^b - 1."),
]
BackendOption = Annotated[str, typer.Option("--backend", help="Backend of integer networks: auto, native or torch.")]
OutputOption = Annotated[
    str | None,
    typer.Option("--output", help="Key or index of the class scores in a result of several tensors; the first by default."),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Allow --out to replace the checkpoint itself, or a file of another kind.")
]


def which_output(given: str | None) -> str | int | None:
    """The key or index of --output, as `nbsnn.evaluate` takes it."""
    return int(given) if given is not None and given.isdecimal() else given


def default_folder(recipe: str) -> Path:
    """The default folder of a recipe's run."""
    return Path("runs") / recipe.replace(":", "-").removesuffix(".toml")


def check_folder(path: Path) -> Path:
    """Check that a run can be written to a folder, which need not exist yet, before training starts."""
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise ConfigError(f"{path}: {'this' if place == path else place} is a file, not a folder; choose another place")
    return path


def with_data(settings: list[str], root: Path | None, download: bool) -> list[str]:
    """Settings of a recipe, including --root and --download."""
    return [*settings, *([f"data.root={root}"] if root else []), *(["data.download=true"] if download else [])]
