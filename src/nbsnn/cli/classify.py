"""`nbsnn classify`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from nbsnn import console, pipeline
from nbsnn.checkpoint import recipe_of
from nbsnn.cli.app import app
from nbsnn.cli.networks import data_of, load, only_quantized, spec_of
from nbsnn.cli.options import JsonOption, OwnArgsOption, OwnOption, QuantizedCheckpoint
from nbsnn.cli.own import Own
from nbsnn.data import load_photographs
from nbsnn.errors import ConfigError
from nbsnn.evaluation.classify import classify as classify_images


@app.command()
def classify(
    checkpoint: QuantizedCheckpoint,
    photographs: Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE...")],
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    json_: JsonOption = False,
) -> None:
    """Print the five most likely classes of each image file, by the integer network.

    The largest center square of an image is resized to the network's input.

    \b
    Example:
      nbsnn classify zoo:cifar10/resnet20-w2a2 cat.jpg
    """
    network, header = load(checkpoint, "cpu", Own(model, model_args))
    quantized = only_quantized(network, checkpoint, "classify")
    spec, data = spec_of(header), data_of(recipe_of(header))
    if data is None or spec is None:
        raise ConfigError(f"{checkpoint} does not store what it was trained on; classify takes networks of nbsnn train")
    classes = len(data.classes) if spec.is_own else spec.num_classes
    images = load_photographs(data, photographs, size=data.image_size or spec.image_size, classes=classes)
    with console.doing("lowering to an integer network, and running it"):
        guesses = classify_images(pipeline.integer_form(quantized, images), images)
    if json_:
        console.show_json({str(p): [asdict(guess) for guess in best] for p, best in zip(photographs, guesses, strict=True)})
        return
    for path, best in zip(photographs, guesses, strict=True):
        rows = [(guess.name, f"{guess.share:.1f}", f"{guess.logit:.3f}") for guess in best]
        console.show_table(path.name, ("class", "share %", "logit"), rows)
