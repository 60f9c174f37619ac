"""`nbsnn init`."""

from pathlib import Path
from typing import Annotated

import typer

from nbsnn import console
from nbsnn.cli.app import app
from nbsnn.cli.options import JsonOption, OwnArgsOption, OwnOption, check_folder
from nbsnn.cli.own import Own
from nbsnn.project.writing import write_project


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The folder to write into; by default this one.")] = Path(),
    root: Annotated[
        Path | None, typer.Option("--root", help="Your images, one folder per class; without any, examples are drawn.")
    ] = None,
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    json_: JsonOption = False,
) -> None:
    """Write a commented recipe for your own images and network, and an example of a network unless you name one.

    Image size, gray or color, classes and batch size are read from the images. No file is replaced.

    \b
    Examples:
      nbsnn init
      nbsnn init pets --root photos --model model:net
    """
    own = Own(model, model_args)
    own.check()
    args = None if model_args is None else own.arguments({})
    project = write_project(check_folder(folder), images=root, model=model, args=args)
    found = project.images
    if json_:
        console.show_json({"written": [str(path) for path in project.written], "classes": list(found.classes),
                           "training_images": found.training})  # fmt: skip
        return
    console.say(f"wrote {', '.join(map(str, project.written))}: {len(found.classes)} classes, {found.training} training images")
    console.say(f"next: nbsnn train --recipe {project.written[0]}")
