"""Small files of every kind that the package writes, and what each loads as."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fuzz.oracle import engines_agree
from nets import SmallNet, small_quantized
from torch import Tensor

import nbsnn
from nbsnn.checkpoint import form_of
from nbsnn.export.packed import save_packed
from nbsnn.quant.quantize import quantize
from nbsnn.recipes import load_recipe
from nbsnn.training.optim import make_optimizer
from nbsnn.training.state import Expected, Learner, TrainingState, read_state, save_state

IMAGES = torch.linspace(-2, 2, 2 * 2 * 36).view(2, 2, 6, 6)
BYTES = torch.arange(2 * 2 * 36).mul(7).remainder(256).to(torch.uint8).view(2, 2, 6, 6)
EXPECTED = Expected("fingerprint", epochs=3, steps=5)


class Kind(NamedTuple):
    """A file, what reads it, and what that gave at first."""

    path: Path
    load: Callable[[Path], Any]
    result: Any


class Corpus:
    """Files of two sorts: `kinds` of a network of a thousand weights, and `lines`, which the command line takes."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder, self.made = folder, dict[str, Any]()
        self.kinds = self._kinds(folder / "kinds")
        self.lines = self._lines(folder / "lines")

    def _kinds(self, folder: Path) -> dict[str, Kind]:
        quantized = small_quantized(3).eval()
        recipe = load_recipe("digits/resnet20")
        for suffix in (".safetensors", ".pth.tar"):
            nbsnn.save_checkpoint(folder / f"float{suffix}", SmallNet(), recipe=recipe, metrics={"top1": 50.0})
            nbsnn.save_checkpoint(folder / f"quantized{suffix}", quantized, recipe=recipe)
            for schedule in ("fixed", "settle", "barrier"):
                spiking = nbsnn.to_spiking(quantized, IMAGES[:1], schedule=schedule)
                nbsnn.save_checkpoint(folder / f"{schedule}{suffix}", spiking)
        save_packed(folder / "packed.safetensors", quantized)
        nbsnn.lower(quantized, IMAGES, mean=(0.4, 0.5), std=(0.2, 0.3)).save(folder / "integer.safetensors")
        self._save_state(folder)
        loaders = {"integer.safetensors": _integer, "training.safetensors": _state}
        paths = [path for path in sorted(folder.iterdir()) if path.is_file()]
        return {
            path.name: Kind(path, load, load(path)) for path in paths for load in [loaders.get(path.name, _checkpoint)]
        }  # fmt: skip

    @staticmethod
    def _save_state(folder: Path) -> None:
        learner = _learner()
        learner.model(IMAGES).square().sum().backward()
        learner.optimizer.step()
        row = {"epoch": 1, "loss": 0.5, "train_top1": 50.0, "top1": 60.0, "lr": 0.1, "seconds": 1.5, "images_per_second": 99.5}
        state = TrainingState("fingerprint", epoch=1, step=2, loss_sum=3.5, correct=7, seen=16, best=60.0, history=[row])
        save_state(folder, state, learner)

    def _lines(self, folder: Path) -> list[Path]:
        """Networks for the digits, untrained; a photograph; a recipe of one short phase; and what is no file of ours."""
        recipe = load_recipe("digits/resnet20", ["phase.all.epochs=1"])
        net = nbsnn.build_model("cifar10/resnet20", in_channels=1, image_size=8)
        quantized = quantize(net, nbsnn.QuantSpec(2, 2), images=torch.randn(32, 1, 8, 8)).eval()
        nbsnn.save_checkpoint(folder / "float.safetensors", net, recipe=recipe)
        nbsnn.save_checkpoint(folder / "quantized.safetensors", quantized, recipe=recipe, metrics={"epoch": 1})
        nbsnn.save_checkpoint(folder / "quantized.pth.tar", quantized, recipe=recipe)
        spiking = nbsnn.to_spiking(quantized, torch.zeros(1, 1, 8, 8))
        nbsnn.save_checkpoint(folder / "spiking.safetensors", spiking, recipe=recipe)
        nbsnn.save_checkpoint(folder / "own.safetensors", small_quantized(3))
        save_packed(folder / "packed.safetensors", quantized)
        network = nbsnn.lower(quantized, torch.randn(1, 1, 8, 8), mean=(0.5,), std=(0.5,))
        network.save(folder / "integer.safetensors")
        torch.save({"state_dict": net.state_dict(), "best": 1}, folder / "foreign.pth.tar")
        (folder / "recipe.toml").write_text(
            '[model]\nname = "cifar10/resnet20"\nin_channels = 1\nimage_size = 8\n'
            '[data]\nname = "digits"\nvalidation = 180\nbatch_size = 700\naugment = false\n[phase.2]\nepochs = 1\nlr = 0.01\n'
        )
        from PIL import Image

        Image.new("RGB", (9, 7), (1, 200, 30)).save(folder / "photo.png")
        (folder / "empty").touch()
        (folder / "text.safetensors").write_text("no tensors\n")
        return sorted(folder.iterdir())

    def cached(self, name: str, make: Callable[[Path], Any]) -> Any:
        """What `make` makes in a folder of its own, at the first call."""
        if name not in self.made:
            self.made[name] = make(self.folder / name)
        return self.made[name]

    def linked(self, folder: Path) -> dict[Path, int]:
        """The files for command lines in a folder of their own, by hard links, which a write that is atomic leaves alone."""
        for path in self.lines:
            os.link(path, folder / path.name)
        return {folder / path.name: path.stat().st_ino for path in self.lines}


def _learner() -> Learner:
    torch.manual_seed(3)
    net, recipe = SmallNet(), load_recipe("digits/resnet20")
    return Learner(net, make_optimizer(net, recipe.phase["32"], recipe.optim))


def _checkpoint(path: Path) -> tuple[str, dict[str, Tensor], Tensor]:
    net = nbsnn.load_checkpoint(path, model=SmallNet())
    kind = next(net.parameters()).dtype
    with torch.no_grad():
        return form_of(net), dict(net.state_dict()), net(IMAGES.to(kind))


def _integer(path: Path) -> Tensor:
    network = nbsnn.IntegerNetwork.load(path)
    images = BYTES if network.program.pixels.table is not None else IMAGES
    return engines_agree(network, images)


def _state(path: Path) -> tuple[TrainingState, dict[str, Tensor]]:
    saved = read_state(path, _learner(), EXPECTED)
    return saved.state, saved.tensors
