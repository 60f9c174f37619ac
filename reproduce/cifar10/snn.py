"""Evaluate the spiking form of a quantized checkpoint on CIFAR-10, with the published commands.

python snn.py --arch alex --bit 3 -e -u --init result/alex_3bit/model_best.pth.tar
python snn.py --arch alex --bit 3 -e --schedule settle --init result/alex_3bit/model_best.pth.tar
"""

import argparse
import sys

import options

from nbsnn.console import exit_code, image_progress, show_comparisons
from nbsnn.evaluation.comparison import compare
from nbsnn.importers.reference import load_quantized_start
from nbsnn.spiking.schedules import check_pair


def run(args: argparse.Namespace) -> None:
    """Convert and compare with the quantized network."""
    pair = check_pair("unsigned" if args.unsigned else None, args.schedule)
    path = options.required_init(args)
    recipe = options.recipe_of(args)
    quantized = load_quantized_start(path, args.arch, bits=args.bit, trainer="main.py")
    device = options.device_of(args)
    test = options.data_of(recipe).test
    compared = args.fidelity_images
    with image_progress(len(test) + compared, "spiking") as tell:
        results = list(compare(quantized.to(device), test, pairs=[pair], fidelity_images=compared, progress=tell))
    show_comparisons(f"{args.arch}, {path}, {len(test)} test images", results)


if __name__ == "__main__":
    arguments = options.parse(__doc__ or "")
    sys.exit(exit_code(lambda: run(arguments), flags=options.FLAGS))
