"""Write a project: a commented recipe, and if they are missing a network and images to try it with."""

import inspect
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbsnn.errors import ConfigError
from nbsnn.files import write_text
from nbsnn.models.own import own_network, parameters_of
from nbsnn.project import model as example
from nbsnn.project.drawing import EXAMPLES, draw_examples
from nbsnn.project.survey import Survey, survey

RECIPE_FILE, MODEL_FILE, IMAGES_FOLDER = "recipe.toml", "model.py", "images"
_EXAMPLE = "model:net"
_BARE = re.compile(r"[A-Za-z0-9_-]+")  # keys of TOML without quotes
_SMALL = 64  # pixels; of smaller images crops show more
_RECIPE = """\
# What is trained, on which images, and how. All settings with their values: nbsnn recipes {file}

[model]
name = "{name}" # the function that makes the float network, module:function; its module lies here
args = {args} # arguments of that function

[data]
name = "folder"
root = {root} # {layout}
{split}validation = {validation} # training images held out to choose the best epoch; 0: the test images choose it
image_size = {size} # pixels; images of any size are resized and cropped to squares of it
channels = {channels} # 3: color, 1: gray
center = {center} # share of the shorter side that evaluation shows
augment = true # train on random crops
crop_area = {crop} # the smallest share of the area that a crop shows
flip = true # mirror half of the crops; false where left and right matter, as in letters
normalization = "computed" # mean and std of the training images; or give mean = [...] and std = [...]
batch_size = {batch}
workers = {workers} # processes that decode images; 0 decodes in this one, which is faster for small images

[optim]
schedule = "cosine"
nesterov = true

# Phases are trained one after the other: float first (32), then with fewer bits. T = 2^bits - 1 time steps.
[phase.32]
epochs = 20
lr = 0.1

[phase.4]
epochs = 10
lr = 0.02

[phase.3]
epochs = 10
lr = 0.02

[phase.2]
epochs = 10
lr = 0.02
"""


@dataclass(frozen=True)
class Project:
    """The files that were written, and what the images are."""

    written: tuple[Path, ...]
    images: Survey


def write_project(
    folder: Path, *, images: Path | None = None, model: str | None = None, args: Mapping[str, Any] | None = None
) -> Project:
    """Write `recipe.toml` into a folder, `model.py` unless there is a network, and images unless there are any.

    Args:
        folder: made if it is missing.
        images: a tree of images; unless given, `images` in the folder.
        model: "package.module:function", importable from the folder or the working directory; unless given, `model.py`.
        args: of that function; unless given, the number of classes and of channels, if it takes them by these names.
    Raises:
        ConfigError: a file exists already, or the function cannot be called; nothing is written.
        DataError: the images are missing, or none can be read.
    """
    for file in (folder / RECIPE_FILE, *([] if model else [folder / MODEL_FILE])):
        if file.exists():
            raise ConfigError(f"{file} exists, and is not replaced; remove it, or choose another folder")
    root = images or folder / IMAGES_FOLDER
    draws = images is None and not root.exists()
    found = EXAMPLES if draws else survey(root)
    if model:
        args = fitting_args(model, found, folder) if args is None else args
        own_network(model, args, folder=folder)  # an error now, before anything is written
    else:
        args = {"num_classes": len(found.classes), "channels": found.channels}
    place = root if root.is_absolute() and images else Path(os.path.relpath(root, folder))
    text = recipe_text(model or _EXAMPLE, args, place, found)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / RECIPE_FILE]
    if draws:
        draw_examples(root)
        written.append(root)
    if not model:
        write_text(folder / MODEL_FILE, Path(inspect.getfile(example)).read_text(encoding="utf-8"))
        written.append(folder / MODEL_FILE)
    write_text(folder / RECIPE_FILE, text)
    return Project(tuple(written), found)


def fitting_args(model: str, images: Survey, folder: Path) -> dict[str, Any]:
    """The numbers of classes and channels of images, under the names by which the function takes them."""
    known = {"num_classes": len(images.classes), "channels": images.channels, "in_channels": images.channels}
    return {name: known[name] for name in parameters_of(model, folder=folder) if name in known}


def recipe_text(model: str, args: Mapping[str, Any], root: Path, images: Survey) -> str:
    """The recipe, as TOML with comments."""
    layout = "<class>/*.png, .jpg, ..." if images.split else "train/<class>/*.png, .jpg, ... and val/<class>/*"
    split = f"split = {images.split} # share of each class to test on; leave it out for a tree of train and val folders\n"
    size = images.image_size // 8 * 8 if images.image_size >= 16 else images.image_size
    validation = images.training // 10 if images.training >= 100 else 0
    return _RECIPE.format(
        file=RECIPE_FILE, name=model, args=_toml(args), root=_toml(root.as_posix()), layout=layout,
        split=split if images.split else "", validation=validation, size=size, channels=images.channels,
        center=1.0 if images.alike else 0.875, crop=0.6 if size <= _SMALL else 0.25, workers=0 if size <= _SMALL else 4,
        batch=max(2, min(64, (images.training - validation) // 4)),
    )  # fmt: skip


def _toml(value: Any) -> str:
    """A plain value on one line of TOML."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{name if _BARE.fullmatch(name) else _toml(name)} = {_toml(item)}" for name, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if value is None:
        raise ConfigError("null has no place in a recipe; leave that argument out")
    return json.dumps(value, ensure_ascii=False)
