"""Train a float or a quantized network on CIFAR-10, with the published commands.

python main.py --arch alex --bit 32 --wd 5e-4
python main.py --arch alex --bit 4 --wd 1e-4 --lr 4e-2 --init result/alex_32bit/model_best.pth.tar
"""

import argparse
import sys

import options

from nbsnn import pipeline
from nbsnn.console import exit_code, note
from nbsnn.data.images import evaluation_batches
from nbsnn.evaluation.accuracy import evaluate
from nbsnn.importers.reference import load_start
from nbsnn.recipe import FLOAT_BITS
from nbsnn.tensorfile import is_ours, read_tensors
from nbsnn.training.execution import pick_execution
from nbsnn.training.loop import fit
from nbsnn.training.options import FitOptions
from nbsnn.training.progressive import next_form
from nbsnn.training.state import fingerprint
from nbsnn.training_console import TrainingConsole


def run(args: argparse.Namespace) -> None:
    """Train, or with -e evaluate."""
    recipe = options.recipe_of(args)
    folder = options.result_folder(args)
    if not args.evaluate:
        options.check_results(args, folder, "float" if args.bit == FLOAT_BITS else "quantized")
    start = options.required_init(args) if args.evaluate else args.resume or args.init
    previous = load_start(start, args.arch, bits=args.bit) if start else pipeline.new_model(recipe)
    splits = options.data_of(recipe)
    device = options.device_of(args)
    if args.evaluate:
        report = evaluate(previous.to(device), evaluation_batches(splits.test))
        note(f"{start}: test accuracy {report.top1:.2f} % (top-5 {report.top5:.2f} %) on {report.images} images")
        return
    model = next_form(previous, recipe, args.bit, pipeline.calibration_images(splits.train))
    first = args.start_epoch
    if first is None:
        first = read_tensors(start)[0]["metrics"].get("epoch", 0) if args.resume and is_ours(args.resume) else 0
    phase = recipe.phase[str(args.bit)]
    how = FitOptions(
        device=device, execution=pick_execution(device, phase.epochs * len(splits.train)), overwrite=not args.continue_,
        first_epoch=first, names=(options.BEST, options.LAST), start=fingerprint(previous) if start else "",
        title=f"{args.arch} {args.bit} bit",
    )  # fmt: skip
    with TrainingConsole(every=args.print_freq) as observer:
        result = fit(model, splits, recipe, phase, out=folder, options=how, observer=observer)
    report = evaluate(load_start(result.best, args.arch, bits=args.bit).to(device), evaluation_batches(splits.test))
    note(f"{result.best}: test accuracy {report.top1:.2f} % on {report.images} images")


if __name__ == "__main__":
    arguments = options.parse(__doc__ or "")
    sys.exit(exit_code(lambda: run(arguments), flags=options.FLAGS))
