"""Whom long work tells of its progress; the command line shows bars."""

from collections.abc import Callable
from contextlib import AbstractContextManager

ImageProgress = Callable[[str, int], None]  # what is being done, and the number of images done since the last call
LayerProgress = Callable[[str, int, int], None]  # the layer that is done, how many are, and how many there are
ProgressBar = Callable[[int, str], AbstractContextManager[ImageProgress]]  # images in all, title; as `console.image_progress`
