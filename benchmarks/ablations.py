"""Ablations of a recipe: one phase is trained several times, each time with some settings changed.

    python benchmarks/ablations.py --bits 32 --variants "" phase.32.ema_decay=0.999 data.padding=mirror
    python benchmarks/ablations.py --bits 2 --start runs/r20/3bit/best.safetensors --teacher runs/r20/32bit/best.safetensors \\
        --variants "" phase.2.distill=0 phase.2.ema_decay=0.998

All variants of a phase use the same batches, start network and number of epochs. A variant is a list of settings, separated by
spaces; "" is the unchanged recipe. A row is written as soon as it is measured; rows in the file are not measured again.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import Rows, machine, trained_by
from rich.console import Console

from nbsnn import console, pipeline
from nbsnn.checkpoint import load_checkpoint
from nbsnn.data import load_data
from nbsnn.data.images import Splits, evaluation_batches
from nbsnn.device import pick_device
from nbsnn.errors import ConfigError
from nbsnn.evaluation.accuracy import evaluate
from nbsnn.quant.plans import read_plan
from nbsnn.quant.quantize import quantize
from nbsnn.recipe import FLOAT_BITS, Recipe
from nbsnn.recipes import load_recipe
from nbsnn.tensorfile import read_tensors
from nbsnn.training.execution import pick_execution
from nbsnn.training.folder import sole_writer
from nbsnn.training.loop import fit
from nbsnn.training.options import FitOptions
from nbsnn.training.progressive import next_form
from nbsnn.training_console import TrainingConsole


def start_of(recipe: Recipe, bits: int, splits: Splits, args: argparse.Namespace) -> torch.nn.Module:
    """The network that the phase starts from."""
    before = load_checkpoint(args.start) if args.start else pipeline.new_model(recipe)
    if args.uncalibrated:
        if recipe.phase[str(bits)].refit_scales:
            raise ConfigError(f"--uncalibrated sets no weight scales anew: add --set phase.{bits}.refit_scales=false")
        if bits == FLOAT_BITS or read_plan(before):
            raise ConfigError("--uncalibrated: only the step from a float network to bits sets thresholds; leave it out")
        return quantize(before, recipe.spec(bits))
    return next_form(before, recipe, bits, pipeline.calibration_images(splits.train))


def measure(recipe: Recipe, settings: str, device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Train one variant; returns its accuracies."""
    splits = load_data(recipe.data, size=recipe.model.image_size)
    phase = recipe.phase[str(args.bits)]
    execution = pick_execution(device, phase.epochs * len(splits.train), compile=args.compile, precision=args.precision)
    teacher = load_checkpoint(args.teacher) if args.teacher else None
    begun = time.monotonic()
    options = FitOptions(device, execution, title=settings or "as it stands")
    with tempfile.TemporaryDirectory() as folder, TrainingConsole() as observer:
        start = start_of(recipe, args.bits, splits, args)
        found = fit(start, splits, recipe, phase, out=Path(folder), options=options, observer=observer, teacher=teacher)
        seconds = time.monotonic() - begun
        test = evaluation_batches(splits.test.to(device))
        last, best = (evaluate(load_checkpoint(path).to(device), test).top1 for path in (found.last, found.best))
    return {
        "train_loss": found.history[-1].loss, "train_top1": found.history[-1].train_top1,
        "validation_top1": found.history[-1].top1, "last_top1": last, "best_top1": best, "seconds": seconds,
        "execution": str(execution), "machine": machine(),
    }  # fmt: skip


def in_words(path: Path | None) -> str | None:
    """A checkpoint as its recipe's hash, its form and its epoch."""
    if path is None:
        return None
    header, _ = read_tensors(path)
    trained = trained_by(header, path)
    return f"{trained['recipe_hash']}, {header['form']}, epoch {trained['epoch']}"


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cifar10/resnet20:fast")
    parser.add_argument("--bits", type=int, required=True, help="of the phase; 32 is float")
    parser.add_argument("--start", type=Path, help="the network that the phase starts from; random weights unless given")
    parser.add_argument("--teacher", type=Path, help="float network, for variants that distil")
    parser.add_argument("--uncalibrated", action="store_true", help="initialize thresholds without images")
    parser.add_argument("--variants", nargs="+", default=[""], help='settings, such as "phase.2.ema_decay=0.999"; "" for none')
    parser.add_argument("--set", nargs="+", default=[], help="settings of all variants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of cifar-10-batches-py")
    parser.add_argument("--label", default="CIFAR-10", help="name of the data in the report")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "ablations.json")
    args = parser.parse_args()
    device = pick_device(args.device)
    gpu = {"gpu": torch.cuda.get_device_name()} if device.type == "cuda" else {}
    rows = Rows(args.json, {"kind": "ablations"})
    common = [f"data.root={args.root}", f"seed={args.seed}", *args.set]
    recipes = {settings: load_recipe(args.recipe, [*common, *settings.split()]) for settings in args.variants}
    for settings, recipe in recipes.items():
        known = {
            "data": args.label, "recipe": args.recipe, "set": args.set, "settings": settings, "seed": args.seed,
            "recipe_hash": recipe.until(args.bits).hash, "precision": args.precision, "bits": args.bits,
            "epochs": recipe.phase[str(args.bits)].epochs, "start": in_words(args.start), "teacher": in_words(args.teacher),
            "calibrated": not args.uncalibrated, **gpu,
        }  # fmt: skip
        if rows.find(**known):
            continue
        row = known | measure(recipe, settings, device, args)
        Console().print(f"{settings or 'as it stands'}: last epoch {row['last_top1']:.2f} %, best {row['best_top1']:.2f} %")
        with sole_writer(args.json.parent):
            rows.add(row)


if __name__ == "__main__":
    sys.exit(console.exit_code(main))
