"""Train a quantized network on ImageNet, with the published commands, in one process or under torchrun.

python dali_main.py -a alexnet -b 256 --bit 4 --workers 4 --lr=0.1 --epochs 60 --dali_cpu /data/imagenet2012
python dali_main.py -a alexnet -b 256 --bit 3 --init result/alexnet_4bit/model_best.pth.tar --workers 4 --lr=0.01 \\
    --epochs 60 --dali_cpu /data/imagenet2012
"""

import argparse
import sys

import options
from torch import nn

from nbsnn import pipeline
from nbsnn.console import exit_code, note, show_mapping, speak_on_main_only
from nbsnn.data.images import LabelledImages, Splits, evaluation_batches
from nbsnn.distributed import process_group, world
from nbsnn.errors import CheckpointError, MissingDependencyError
from nbsnn.evaluation.accuracy import evaluate
from nbsnn.importers.reference import load_start
from nbsnn.recipe import FLOAT_BITS, Recipe
from nbsnn.tensorfile import is_ours, read_tensors
from nbsnn.training.execution import pick_execution
from nbsnn.training.loop import fit
from nbsnn.training.matching import with_classes
from nbsnn.training.options import FitOptions
from nbsnn.training.progressive import next_form
from nbsnn.training.state import fingerprint
from nbsnn.training_console import TrainingConsole


def start_of(args: argparse.Namespace, recipe: Recipe, images: LabelledImages) -> tuple[nn.Module, str]:
    """The start network and its fingerprint: from --resume, --init, --pretrained, or TorchVision if available."""
    path = args.resume or args.init
    if path:
        net = load_start(path, recipe.model.name, bits=args.bit)
        return net, fingerprint(net)
    try:
        net, mapped = pipeline.pretrained_model(recipe, args.pretrained or "torchvision", images)
    except (MissingDependencyError, CheckpointError) as error:
        if args.pretrained:
            raise
        note(f"no --init and no --pretrained: starting from random weights, unlike the published results ({error})")
        return pipeline.new_model(recipe), ""
    show_mapping(mapped)
    return net, fingerprint(net)


def train(args: argparse.Namespace, recipe: Recipe, splits: Splits) -> None:
    """Train one phase, and evaluate its best epoch."""
    device = options.device_of(args)
    previous, start = start_of(args, recipe, splits.train)
    model = next_form(previous, recipe, args.bit, pipeline.calibration_images(splits.train))
    first = args.start_epoch
    if first is None:
        first = read_tensors(args.resume)[0]["metrics"].get("epoch", 0) if args.resume and is_ours(args.resume) else 0
    phase = recipe.phase[str(args.bit)]
    how = FitOptions(
        device=device, execution=pick_execution(device, phase.epochs * len(splits.train)), overwrite=not args.continue_,
        first_epoch=first, names=(options.BEST, options.LAST), start=start, title=f"{args.arch} {args.bit} bit",
    )  # fmt: skip
    with TrainingConsole(every=args.print_freq) as observer:
        result = fit(model, splits, recipe, phase, out=options.result_folder(args), options=how, observer=observer)
    note_accuracy(args, load_start(result.best, recipe.model.name, bits=args.bit), splits.test, str(result.best))


def note_accuracy(args: argparse.Namespace, model: nn.Module, images: LabelledImages, name: str) -> None:
    """Accuracy on the validation images, over all processes."""
    test = images.some(args.limit)
    device = options.device_of(args)
    report = evaluate(model.to(device), evaluation_batches(test.to(device), world=world()))
    note(f"{name}: validation accuracy {report.top1:.2f} % (top-5 {report.top5:.2f} %) on {report.images} images")


def run(args: argparse.Namespace) -> None:
    """Train, or with -e evaluate."""
    with process_group(options.device_of(args)) as group:
        speak_on_main_only(group)
        recipe = options.recipe_of(args, group)
        if args.evaluate:
            path = options.required_init(args)
            model = load_start(path, recipe.model.name, bits=args.bit)
            note_accuracy(args, model, options.data_of(recipe, path).test, str(path))
        else:
            splits = options.data_of(recipe)
            options.check_results(args, options.result_folder(args), "float" if args.bit == FLOAT_BITS else "quantized")
            train(args, with_classes(recipe, splits.train, []), splits)


if __name__ == "__main__":
    arguments = options.parse(__doc__ or "")
    sys.exit(exit_code(lambda: run(arguments), flags=options.FLAGS))
