"""Fine-tune a quantized checkpoint for the schedule "fixed", layer by layer, with the published commands.

python snn_ft.py --arch resnet20 --bit 2 -n 1 --force --init result/resnet20_2bit/model_best.pth.tar
python snn_ft.py --arch resnet20 --bit 2 -e --init result/resnet20_2bit_ft/model_best.pth.tar
"""

import argparse
import csv
import io
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import options

from nbsnn import pipeline
from nbsnn.checkpoint import form_of, save_checkpoint
from nbsnn.console import change_line, exit_code, image_progress, note, show_finetuning
from nbsnn.data.images import Batches, Splits
from nbsnn.errors import ConfigError
from nbsnn.evaluation.accuracy import evaluate
from nbsnn.files import write_text
from nbsnn.importers.reference import load_quantized_start, load_start
from nbsnn.recipe import Recipe
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.training.finetune_spec import Change, FinetuneSpec


class _Files:
    """The result folder: the last and the best network so far, and a line of the log for each layer."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        self.rows: list[dict[str, object]] = []
        self.best = -1.0

    def save(self, name: str, network: SpikingNetwork, metrics: dict[str, Any]) -> None:
        save_checkpoint(self.folder / name, network, recipe=self.recipe, metrics=metrics)

    def on_change(self, change: Change, network: SpikingNetwork, metrics: dict[str, Any]) -> None:
        note(change_line(change))
        self.rows.append(asdict(change))
        if change.top1 > self.best:
            self.best = change.top1
            self.save(options.BEST, network, metrics)
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[0]))
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.folder / "log.csv", text.getvalue())
        write_text(self.folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows))


def parse(description: str, arguments: list[str] | None = None) -> argparse.Namespace:
    """The published flags and those of fine-tuning."""
    parser = options.make_parser(description)
    parser.set_defaults(lr=1e-3)
    parser.add_argument("-n", "--num_epochs", type=int, default=1, help="epochs of each layer")
    parser.add_argument("--force", action="store_true", help="keep every layer, even if accuracy does not rise")
    parser.add_argument("--limit-train", type=int, default=0, help="train on the first N images only; 0 is all")
    return parser.parse_args(arguments)


def _evaluate(args: argparse.Namespace, path: Path, recipe: Recipe) -> None:
    network = load_start(path, args.arch, bits=args.bit)
    device = options.device_of(args)
    test = options.data_of(recipe).test
    with image_progress(len(test), form_of(network)) as tell:
        report = evaluate(network.to(device), Batches(test, args.batch_size), progress=lambda count: tell("", count))
    note(f"{path}, {form_of(network)} form: test accuracy {report.top1:.2f} % on {report.images} images")


def run(args: argparse.Namespace) -> None:
    """Fine-tune, or with -e evaluate a fine-tuned checkpoint."""
    path = options.required_init(args)
    recipe = options.recipe_of(args)
    if args.evaluate:
        _evaluate(args, path, recipe)
        return
    folder = options.result_folder(args).with_name(f"{args.arch}_{args.bit}bit_ft")
    options.check_results(args, folder, "spiking")
    network = load_quantized_start(path, args.arch, bits=args.bit, trainer="main.py")
    if args.schedule != "fixed":
        raise ConfigError(f"--schedule {args.schedule}: exact schedules need no fine-tuning; leave it at fixed")
    if args.validation < 1:
        raise ConfigError("--validation 0: fine-tuning needs held-out training images; leave it at 5000")
    spec = FinetuneSpec(
        neuron="unsigned" if args.unsigned else "signed", epochs=args.num_epochs, lr=args.lr, momentum=args.momentum,
        weight_decay=args.weight_decay, batch_size=args.batch_size, force=args.force, seed=args.seed,
    )  # fmt: skip
    quantized = network.to(options.device_of(args))
    splits = options.data_of(recipe)
    splits = Splits(splits.train.some(args.limit_train), splits.validation, splits.test)
    files = _Files(folder, recipe)
    tuned = pipeline.finetune_and_test(
        quantized, splits, spec, source=str(path), progress=image_progress, on_change=files.on_change
    )  # fmt: skip
    files.save(options.LAST, tuned.result.spiking, tuned.metrics | {"held_out_top1": tuned.result.after_top1})
    show_finetuning(f"{args.arch}, {path}", tuned.result, len(splits.validation), tuned.tested)


if __name__ == "__main__":
    parsed = parse(__doc__ or "")
    sys.exit(exit_code(lambda: run(parsed), flags=options.FLAGS))
