"""`nbsnn classify`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from nbsnn import console, pipeline
from nbsnn.checkpoint import recipe_of
from nbsnn.cli.app import app
from nbsnn.cli.networks import load, only_quantized
from nbsnn.cli.options import Checkpoint, JsonOption
from nbsnn.data import load_photographs
from nbsnn.errors import ConfigError
from nbsnn.evaluation.classify import classify as classify_images
from nbsnn.recipe import ModelSpec


@app.command()
def classify(
    checkpoint: Checkpoint,
    photographs: Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE...")],
    json_: JsonOption = False,
) -> None:
    """Print the five most likely classes of each image file, by the integer network.

    The largest center square of an image is resized to the network's input.

    \b
    Example:
      nbsnn classify zoo:cifar10/resnet20-w2a2 cat.jpg
    """
    model, header = load(checkpoint, "cpu")
    quantized = only_quantized(model, checkpoint, "classify")
    recipe = recipe_of(header)
    if recipe is None or header["model"] is None:
        raise ConfigError(f"{checkpoint} does not store what it was trained on; classify takes networks of nbsnn train")
    spec = ModelSpec(**header["model"])
    images = load_photographs(recipe.data, photographs, size=spec.image_size, classes=spec.num_classes)
    with console.doing("lowering to an integer network, and running it"):
        guesses = classify_images(pipeline.integer_form(quantized, images), images)
    if json_:
        console.show_json({str(p): [asdict(guess) for guess in best] for p, best in zip(photographs, guesses, strict=True)})
        return
    for path, best in zip(photographs, guesses, strict=True):
        rows = [(guess.name, f"{guess.share:.1f}", f"{guess.logit:.3f}") for guess in best]
        console.show_table(path.name, ("class", "share %", "logit"), rows)
