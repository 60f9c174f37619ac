"""`nbsnn check`."""

from typing import Annotated

import torch
import typer

from nbsnn import console
from nbsnn.cli.app import app
from nbsnn.cli.options import JsonOption, OwnArgsOption, OwnOption, StateOption
from nbsnn.cli.own import Own
from nbsnn.dry_run import check as check_network
from nbsnn.errors import ConfigError
from nbsnn.schema.networks import MOST_IMAGE


@app.command()
def check(
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    state: StateOption = None,
    image_shape: Annotated[
        str, typer.Option("--image-shape", metavar="C,H,W", help="Shape of one image, such as 3,32,32, or of one row, 20.")
    ] = "3,32,32",
    json_: JsonOption = False,
) -> None:
    """Check a network of your own before any training: what is changed, and what stands in the way of its integer form.

    The exit code is 1 if something is refused.

    \b
    Example:
      nbsnn check --model my_package.models:net --image-shape 3,32,32
    """
    network = Own(model, model_args, state).made()
    example = torch.randn(1, *shape_of(image_shape), generator=torch.Generator().manual_seed(0))
    with console.doing("checking"):
        findings = check_network(network, example)
    refused = sum(finding.status == "refused" for finding in findings)
    if json_:
        console.show_json({"refused": refused, "findings": [finding.to_dict() for finding in findings]})
    else:
        rows = [(f.status, f.layer or "-", f.place or "-", f.what, f.remedy or "-") for f in findings]
        console.show_table(str(model), ("status", "layer", "place", "what", "remedy"), rows)
        console.say(f"{refused} places are refused" if refused else "nothing is refused: it can be quantized and lowered")
    if refused:
        raise typer.Exit(1)


def shape_of(text: str) -> tuple[int, ...]:
    """The shape in an option: "3,32,32"."""
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not 1 <= len(shape) <= 3 or min(shape, default=0) < 1 or torch.Size(shape).numel() > MOST_IMAGE:
        raise ConfigError(f"--image-shape {text}: give one to three sizes, such as 3,32,32")
    return shape
