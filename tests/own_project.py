"""A project of a user: a folder with a network in model.py, a tree of images of any size, and a recipe."""

from pathlib import Path

import numpy as np
from PIL import Image

MODEL = """
import torch
from torch import nn


def net(num_classes=3, channels=1):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )


class Plain(nn.Module):  # as people write it: functions, a shared ReLU, a convolution after a convolution
    def __init__(self, num_classes=3):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.third = nn.Conv2d(6, 6, 3, stride=2), nn.Conv2d(6, 8, 1)
        self.relu, self.head = nn.ReLU(), nn.Linear(8, num_classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = self.relu(self.third(self.second(x)))
        return self.head(self.relu(x.mean((2, 3))))


class Gated(Plain):
    def forward(self, x):
        return super().forward(x) * torch.sigmoid(x.mean())


def number():
    return 3


def broken():
    raise ValueError("no such\\nfile")


class Two(nn.Module):
    def forward(self, images, more):
        return images + more


class Pair(nn.Module):
    def forward(self, images):
        return images, images
"""
RECIPE = """
[model]
name = "model:net"
args = { num_classes = 3 }

[data]
name = "folder"
root = "photos"
split = 0.25
validation = 0
image_size = 10
channels = 1
center = 1.0
crop_area = 0.6
flip = false
normalization = "computed"
batch_size = 9
workers = 0

[phase.32]
epochs = 1
lr = 0.05

[phase.3]
epochs = 1
lr = 0.01
"""
CLASSES = ("circle", "ring", "square")


def draw(folder: Path, *, count: int = 12, suffix: str = ".png") -> None:
    """A tree of class folders with gray shapes of several sizes."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            height, width = rng.integers(9, 20, 2)
            y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
            radius = np.maximum(abs(x), abs(y)) if name == "square" else np.hypot(x, y)
            inside = (radius < 0.8) & (radius > (0.5 if name == "ring" else -1))
            level = np.where(inside, 220, 30) + rng.integers(-20, 20, (height, width))
            Image.fromarray(level.astype(np.uint8)).save(folder / name / f"{index}{suffix}")


def make_project(folder: Path) -> Path:
    """Write model.py, recipe.toml and photos/ into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(MODEL)
    (folder / "recipe.toml").write_text(RECIPE)
    draw(folder / "photos")
    return folder
