"""Evaluate the spiking form of a quantized checkpoint on ImageNet, with the published commands.

python snn.py -a alexnet -b 256 -e -u --bit 3 --init result/alexnet_3bit/model_best.pth.tar --workers 4 --dali_cpu \\
    /data/imagenet2012
"""

import argparse
import sys

import options

from nbsnn.console import exit_code, image_progress, show_comparisons, speak_on_main_only
from nbsnn.distributed import process_group
from nbsnn.evaluation.comparison import compare
from nbsnn.importers.reference import load_quantized_start
from nbsnn.spiking.schedules import check_pair

_FIDELITY_IMAGES = 8  # of 224×224; all their activations are in memory


def run(args: argparse.Namespace) -> None:
    """Convert and compare with the quantized network."""
    pair = check_pair("unsigned" if args.unsigned else None, args.schedule)
    device = options.device_of(args)
    with process_group(device) as group:
        speak_on_main_only(group)
        recipe = options.recipe_of(args, group)
        path = options.required_init(args)
        quantized = load_quantized_start(path, recipe.model.name, bits=args.bit, trainer="dali_main.py")
        test = options.data_of(recipe, path).test.some(args.limit).to(device)
        with image_progress(len(test) // group.size + _FIDELITY_IMAGES, "spiking") as tell:
            found = list(compare(
                quantized.to(device), test, pairs=[pair], fidelity_images=_FIDELITY_IMAGES,
                at_a_time=args.batch_size * group.size, progress=tell,
            ))  # fmt: skip
    show_comparisons(f"{args.arch}, {path}, {len(test)} validation images", found)


if __name__ == "__main__":
    arguments = options.parse(__doc__ or "")
    sys.exit(exit_code(lambda: run(arguments), flags=options.FLAGS))
