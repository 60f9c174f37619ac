"""`nbsnn check`."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from nbsnn import console
from nbsnn.checkpoint import form_of
from nbsnn.cli.app import app
from nbsnn.cli.networks import chosen_data, load, load_splits
from nbsnn.cli.options import DataOption, JsonOption, OwnArgsOption, OwnOption, RootOption, StateOption
from nbsnn.cli.own import Own
from nbsnn.dry_run import check as check_network
from nbsnn.errors import ConfigError
from nbsnn.integer.network import IntegerNetwork
from nbsnn.schema.networks import MOST_IMAGE


@app.command()
def check(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A float checkpoint written by nbsnn.", metavar="[CHECKPOINT]")
    ] = None,
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    state: StateOption = None,
    image_shape: Annotated[
        str | None,
        typer.Option("--image-shape", metavar="C,H,W", help="Shape of one image, or of one row; 3,32,32 unless --data tells."),
    ] = None,
    data: DataOption = None,
    root: RootOption = None,
    json_: JsonOption = False,
) -> None:
    """Check a network of your own before any training: what is changed, and what stands in the way of its integer form.

    The exit code is 1 if something is refused.

    \b
    Examples:
      nbsnn check --model my_package.models:net --image-shape 3,32,32
      nbsnn check --model model:net --data recipe.toml
    """
    network, header = load(checkpoint, "cpu", Own(model, model_args, state))
    if isinstance(network, IntegerNetwork) or form_of(network) != "float":
        raise ConfigError(f"{checkpoint} holds no float network; check takes the one that it was made from")
    if data or root or (header["recipe"] and not image_shape):
        if image_shape:
            raise ConfigError(f"--image-shape {image_shape}: --data tells the shape; give one of the two")
        images = load_splits(header, chosen_data(header, data=data, root=root, download=False)).test
        example = images.normalized(images.pixels(slice(0, 1)))
    else:
        example = torch.randn(1, *shape_of(image_shape or "3,32,32"), generator=torch.Generator().manual_seed(0))
    with console.doing("checking"):
        findings = check_network(network, example)
    refused = sum(finding.status == "refused" for finding in findings)
    if json_:
        console.show_json({"refused": refused, "findings": [finding.to_dict() for finding in findings]})
    else:
        rows = [(f.status, f.layer or "-", f.place or "-", f.what, f.remedy or "-") for f in findings]
        console.show_table(str(checkpoint or model), ("status", "layer", "place", "what", "remedy"), rows)
        console.say(f"{refused} places are refused" if refused else "nothing is refused: it can be quantized and lowered")
    if refused:
        raise typer.Exit(1)


def shape_of(text: str) -> tuple[int, ...]:
    """The shape in an option: "3,32,32"."""
    try:
        shape = tuple(int(part) for part in text.replace("x", " ").replace(",", " ").split())
    except ValueError:
        shape = ()
    if not 1 <= len(shape) <= 3 or min(shape, default=0) < 1 or torch.Size(shape).numel() > MOST_IMAGE:
        raise ConfigError(f"--image-shape {text}: give one to three sizes, such as 3,32,32")
    return shape
