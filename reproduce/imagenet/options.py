"""The flags of the published ImageNet commands, and what dali_main.py and snn.py share."""

import argparse
from pathlib import Path

import torch

from nbsnn.console import Flag
from nbsnn.data import load_data
from nbsnn.data.dali import INSTALL, is_installed
from nbsnn.data.images import Splits
from nbsnn.device import pick_device
from nbsnn.distributed import World
from nbsnn.errors import ConfigError
from nbsnn.models import canonical_name
from nbsnn.outputs import check_output, network_kind
from nbsnn.recipe import Phase, Recipe, recipe_from_dict
from nbsnn.recipes import load_recipe
from nbsnn.tensorfile import is_ours, read_tensors
from nbsnn.training.folder import check_start

HERE = Path(__file__).resolve().parent
BEST, LAST = "model_best.pth.tar", "checkpoint.pth.tar"
FLAGS = {  # what these commands call arguments of the library
    "overwrite": Flag("without -ct", "with -ct"),
    "first_epoch": Flag("--start-epoch"), "phase.N.lr": Flag("--lr"), "bits": Flag("--bit"), "model": Flag("--arch"),
    "data.loader": Flag("--loader"), "pretrained": Flag("--pretrained"),
}  # fmt: skip


def parse(description: str, arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("data", type=Path, help="folder of train/<class>/*.JPEG and val/<class>/*.JPEG")
    add("-a", "--arch", default="alexnet", help="alexnet or vgg16")
    add("-b", "--batch-size", type=int, default=256, help="batch size per process")
    add("--bit", type=int, default=32, help="bits of activations: 32, 4, 3 or 2")
    add(
        "--lr",
        "--learning-rate",
        dest="lr",
        type=float,
        default=0.1,
        help="learning rate for 256 images, scaled with the batch size",
    )
    add("--epochs", type=int, default=60, help="total number of epochs")
    add("--wd", "--weight-decay", dest="weight_decay", type=float, default=1e-4, help="weight decay")
    add("--momentum", type=float, default=0.9, help="momentum of SGD")
    add("--init", type=Path, default=None, metavar="FILE", help="start from this checkpoint, of nbsnn or of the authors' code")
    add("--pretrained", nargs="?", const="torchvision", default=None, metavar="FILE",
        help="start from TorchVision's weights: downloaded by torchvision, or the file of a state dict")  # fmt: skip
    add("--resume", type=Path, default=None, metavar="FILE", help="resume from this checkpoint, at its epoch")
    add("--start-epoch", type=int, default=None, help="number of the first epoch, for a manual restart")
    add("-e", "--evaluate", action="store_true", help="evaluate only")
    add("-u", "--unsigned", action="store_true", help="unsigned neurons instead of signed ones")
    add(
        "-j",
        "--workers",
        type=int,
        default=4,
        help="threads, or at most as many worker processes, for decoding in each process",
    )
    add("-p", "--print-freq", type=int, default=10, help="number of batches between two printed lines")
    add("--dali_cpu", action="store_true", help="DALI decodes and augments on the CPU")
    add("--loader", default=None, help="dali, dali_cpu or torch; depends on what is installed unless given")
    add("--on-corrupt", default="skip", help="for a corrupt file: skip (logged and counted) or refuse")
    add("--deterministic", action="store_true", help="use deterministic algorithms only, also in cuDNN")
    add("--channels-last", nargs="?", const=True, default=True, help="always on; accepted as published")
    add(
        "--local_rank",
        "--local-rank",
        type=int,
        default=None,
        help="set by old launchers; ignored, torchrun's environment is used",
    )
    add("-id", "--device", default="auto", help="auto, cpu or cuda")
    add("--schedule", default="fixed", help="schedule: fixed (published), settle or barrier (exact)")
    add("--lowbit", action="store_true", help="inner weights with as few bits as activations, instead of 32")
    add("-ct", "--continue", dest="continue_", action="store_true", help="resume the interrupted run in the result folder")
    add("--overwrite", action="store_true", help="allow results to replace files of another kind in the result folder")
    add("--limit", type=int, default=0, help="evaluate on N validation images of all classes only; 0 is all")
    add("--result", type=Path, default=HERE / "result", help="folder of the results")
    add("--seed", type=int, default=0, help="of order and augmentation")
    return parser.parse_args(arguments)


def recipe_of(args: argparse.Namespace, group: World) -> Recipe:
    """The published recipe of the network, with one phase set by the flags."""
    name = canonical_name(args.arch, data="imagenet")
    table = load_recipe(f"{name}:lowbit" if args.lowbit else name).to_dict()
    table["phase"] = {str(args.bit): vars(Phase(args.epochs, args.lr, args.weight_decay))}
    table["data"] |= {"root": str(args.data), "batch_size": args.batch_size * group.size, "workers": args.workers,
                      "loader": loader_of(args), "on_corrupt": args.on_corrupt}  # fmt: skip
    table["optim"] |= {"momentum": args.momentum}
    return recipe_from_dict(table | {"seed": args.seed, "name": f"published {args.arch} {args.bit} bit"})


def loader_of(args: argparse.Namespace) -> str:
    """The loader of photographs; raises an error if DALI is requested and not installed."""
    loader: str = args.loader or ("dali_cpu" if args.dali_cpu else "auto")
    if loader.startswith("dali") and not is_installed():
        raise ConfigError(f"{'--dali_cpu' if args.dali_cpu else f'--loader {loader}'} needs nvidia-dali: {INSTALL}")
    return loader


def result_folder(args: argparse.Namespace) -> Path:
    """`result/<arch>_<bit>bit`."""
    folder: Path = args.result / f"{args.arch}_{args.bit}bit"
    return folder


def check_results(args: argparse.Namespace, folder: Path, form: str) -> None:
    """Raise an error, before any work, if the run would replace its start or files in its folder that are not its results.

    Raises:
        ConfigError: names the file.
    """
    check_start(folder, args.init or args.pretrained, names=(BEST, LAST))
    for name in () if args.continue_ else (BEST, LAST):
        check_output(folder / name, network_kind(form), overwrite=args.overwrite)


def data_of(recipe: Recipe, checkpoint: Path | None = None) -> Splits:
    """The photographs, with the classes stored in a checkpoint of nbsnn."""
    ours = read_tensors(checkpoint)[0]["recipe"] if checkpoint and is_ours(checkpoint) else None
    classes = recipe_from_dict(ours).data.classes if ours else ()
    return load_data(recipe.data, size=recipe.model.image_size, classes=classes)


def device_of(args: argparse.Namespace) -> torch.device:
    """This process's GPU or the CPU; deterministic if requested."""
    if args.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    return pick_device(args.device)


def required_init(args: argparse.Namespace) -> Path:
    """The checkpoint to evaluate."""
    path: Path | None = args.init or args.resume
    if path is None:
        raise ConfigError("--init: name the checkpoint to evaluate, such as result/alexnet_3bit/model_best.pth.tar")
    return path
