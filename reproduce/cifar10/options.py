"""The flags of the published commands, and what main.py, snn.py and snn_ft.py share."""

import argparse
from pathlib import Path

import torch

from nbsnn.console import Flag, download_progress, note
from nbsnn.data import load_data
from nbsnn.data.images import Splits
from nbsnn.device import pick_device
from nbsnn.errors import ConfigError
from nbsnn.models import canonical_name
from nbsnn.outputs import check_output, network_kind
from nbsnn.recipe import Phase, Recipe, recipe_from_dict
from nbsnn.recipes import load_recipe
from nbsnn.training.folder import check_start

HERE = Path(__file__).resolve().parent
BEST, LAST = "model_best.pth.tar", "checkpoint.pth.tar"  # in the result folder
FLAGS = {  # what these commands call arguments of the library
    "root": Flag("--data"), "download": Flag("--download"), "overwrite": Flag("without -ct", "with -ct"),
    "first_epoch": Flag("--start-epoch"),
    "phase.N.lr": Flag("--lr"), "lr": Flag("--lr"), "bits": Flag("--bit"), "model": Flag("--arch"),
}  # fmt: skip


def parse(description: str, arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the flags."""
    return make_parser(description).parse_args(arguments)


def make_parser(description: str) -> argparse.ArgumentParser:
    """The published flags, and a few more for folders."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("-a", "--arch", default="alex", help="alex, vgg11, resnet20 (or res20), 32, 44, 56, 110, resnet18")
    add("--bit", type=int, default=32, help="bits of weights and activations: 32, 4, 3 or 2")
    add("--wd", "--weight-decay", dest="weight_decay", type=float, default=5e-4, help="weight decay")
    add("--lr", "--learning-rate", dest="lr", type=float, default=0.1, help="initial learning rate")
    add("--epochs", type=int, default=300, help="total number of epochs")
    add("-b", "--batch-size", type=int, default=128, help="images in a batch")
    add("--momentum", type=float, default=0.9, help="momentum of SGD")
    add("--start-epoch", type=int, default=None, help="number of the first epoch, for a manual restart")
    add("--resume", type=Path, default=None, metavar="FILE", help="resume from this checkpoint, at its epoch")
    add("--init", type=Path, default=None, metavar="FILE", help="start from this checkpoint, of nbsnn or of the authors' code")
    add("-e", "--evaluate", action="store_true", help="evaluate only")
    add("-p", "--print-freq", type=int, default=100, help="number of batches between two printed lines")
    add("-id", "--device", default="0", help="number of the GPU, or cpu; without a GPU the CPU is used")
    add("-u", "--unsigned", action="store_true", help="unsigned neurons instead of signed ones")
    add("-ct", "--continue", dest="continue_", action="store_true", help="resume the interrupted run in the result folder")
    add("--overwrite", action="store_true", help="allow results to replace files of another kind in the result folder")
    add("--schedule", default="fixed", help="schedule: fixed (published), settle or barrier (exact)")
    add("--fidelity-images", type=int, default=50, help="images compared neuron by neuron")
    add("--data", type=Path, default=HERE / "data", help="folder of cifar-10-batches-py")
    add("--result", type=Path, default=HERE / "result", help="folder of the results")
    add("--download", action="store_true", help="download the data set if it is missing")
    add("--validation", type=int, default=5000, help="training images held out to choose the best epoch")
    add("--seed", type=int, default=0, help="of weights, order and augmentation")
    return parser


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The published recipe of the network, with one phase set by the flags."""
    table = load_recipe(canonical_name(args.arch)).to_dict()
    phase = Phase(args.epochs, args.lr, args.weight_decay)
    table["phase"] = {str(args.bit): vars(phase)}
    table["data"] |= {"root": str(args.data), "download": args.download, "batch_size": args.batch_size,
                      "validation": args.validation}  # fmt: skip
    table["optim"] |= {"momentum": args.momentum}
    return recipe_from_dict(table | {"seed": args.seed, "name": f"published {args.arch} {args.bit} bit"})


def result_folder(args: argparse.Namespace) -> Path:
    """`result/<arch>_<bit>bit`."""
    folder: Path = args.result / f"{args.arch}_{args.bit}bit"
    return folder


def check_results(args: argparse.Namespace, folder: Path, form: str) -> None:
    """Raise an error, before any work, if the run would replace its start or files in its folder that are not its results.

    Raises:
        ConfigError: names the file.
    """
    check_start(folder, args.init, names=(BEST, LAST))
    for name in () if args.continue_ else (BEST, LAST):
        check_output(folder / name, network_kind(form), overwrite=args.overwrite)


def device_of(args: argparse.Namespace) -> torch.device:
    """The GPU with the given number, or the CPU."""
    if args.device.isdigit() and not torch.cuda.is_available():
        note("no GPU here: running on the CPU")
        return torch.device("cpu")
    return pick_device(f"cuda:{args.device}" if args.device.isdigit() else args.device)


def data_of(recipe: Recipe) -> Splits:
    """CIFAR-10, downloaded if asked."""
    with download_progress() as progress:
        return load_data(recipe.data, progress=progress)


def required_init(args: argparse.Namespace) -> Path:
    """The checkpoint to evaluate."""
    path: Path | None = args.init or args.resume
    if path is None:
        raise ConfigError("--init: name the checkpoint to evaluate, such as result/alex_3bit/model_best.pth.tar")
    return path
