"""Example images: circles, rings and squares in color, of several sizes."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nbsnn.data.decode import write_picture
from nbsnn.project.survey import Survey

_EACH = 24  # images of a class
EXAMPLES = Survey(("circle", "ring", "square"), training=57, split=0.2, image_size=39, channels=3, alike=False)


def draw_examples(folder: Path) -> None:
    """Write a tree of class folders with small PNG files, always the same ones."""
    generator = np.random.default_rng(0)
    for name in EXAMPLES.classes:
        (folder / name).mkdir(parents=True)
        for index in range(_EACH):
            write_picture(folder / name / f"{index:02d}.png", _shape(name, int(generator.integers(32, 49)), generator))


def _shape(name: str, side: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """One shape in a random color on a darker ground, [side, side, 3]."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    x, y = x + generator.uniform(-0.2, 0.2), y + generator.uniform(-0.2, 0.2)
    radius = np.maximum(abs(x), abs(y)) if name == "square" else np.hypot(x, y)
    inside = (radius < 0.7) & (radius > (0.4 if name == "ring" else -1))
    color, ground = generator.integers(140, 240, 3), generator.integers(20, 90, 3)
    levels = np.where(inside[..., None], color, ground) + generator.integers(-15, 16, (side, side, 3))
    return levels.clip(0, 255).astype(np.uint8)
