"""`nbsnn train`."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import torch
import typer

from nbsnn import console, pipeline
from nbsnn.cli.app import app
from nbsnn.cli.networks import load_start
from nbsnn.cli.options import (
    DeviceOption,
    DownloadOption,
    JsonOption,
    OwnArgsOption,
    OwnOption,
    RecipeOption,
    RootOption,
    SetOption,
    StateOption,
    between,
    check_folder,
    default_folder,
    with_data,
)
from nbsnn.cli.own import Own, run_network
from nbsnn.data import load_data
from nbsnn.data.photos import PhotoSet
from nbsnn.device import pick_device
from nbsnn.distributed import process_group
from nbsnn.errors import ConfigError
from nbsnn.recipe import FLOAT_BITS, MOST_SEED
from nbsnn.recipes import load_recipe
from nbsnn.training.folder import check_start
from nbsnn.training.observer import Observer, Observers
from nbsnn.training.options import SAVE_EVERY, TrainOptions
from nbsnn.training.tensorboard import TensorBoard
from nbsnn.training_console import TrainingConsole
from nbsnn.training_dashboard import Dashboard


@app.command()
def train(
    recipe: RecipeOption,
    settings: SetOption = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run; by default runs/<recipe>.")] = None,
    root: RootOption = None,
    download: DownloadOption = False,
    seed: Annotated[
        int | None,
        typer.Option("--seed", callback=between(0, MOST_SEED), help="Of weights, order and augmentation."),
    ] = None,
    device: DeviceOption = "auto",
    compile_: Annotated[str, typer.Option("--compile", help="Compile the training step: auto, on or off.")] = "auto",
    precision: Annotated[str, typer.Option("--precision", help="auto, float32 or bf16 (autocast).")] = "auto",
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    state: StateOption = None,
    init: Annotated[Path | None, typer.Option("--init", help="Checkpoint that the first phase starts from.")] = None,
    pretrained: Annotated[
        str | None,
        typer.Option("--pretrained", help="Start from TorchVision's network: 'torchvision', or the file of its state dict."),
    ] = None,
    save_every: Annotated[
        float, typer.Option("--save-every", callback=between(0), help="Seconds between training states; 0 is after each step.")
    ] = SAVE_EVERY,
    resume: Annotated[bool, typer.Option("--resume", help="Fail if there is no run to resume.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train from the start, and replace results in --out.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write loss, accuracy and activity for TensorBoard, in the run's folder.")
    ] = False,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Show the course of the run and rates, clipped and dead neurons by layer.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Train the phases of a recipe: float, then 4, 3 and 2 bits.

    The same command resumes an unfinished run, bit for bit on the same processor or GPU. Ctrl-C saves and exits; a run that
    was killed resumes from its last training state. Under torchrun, several processes train together, on one machine or on
    several.

    \b
    Examples:
      nbsnn train --recipe cifar10/resnet20:fast --root data --out runs/r20
      nbsnn train -r digits/resnet20 --set phase.2.epochs=20 --set seed=1
      torchrun --nproc-per-node 8 -m nbsnn train -r imagenet/vgg16 --root /data
    """
    given = with_data(settings, root, download)
    plan = load_recipe(recipe, given if seed is None else [*given, f"seed={seed}"])
    starts = [name for name, value in (("--init", init), ("--pretrained", pretrained), ("--state", state)) if value]
    if len(starts) > 1:
        raise ConfigError(f"{' and '.join(starts)} both give a start; give one of them")
    plan, network = run_network(plan, Own(model, model_args, state))
    chosen = pick_device(device)
    folder = check_folder(out or default_folder(recipe))
    for bits in plan.phase:
        check_start(pipeline.phase_folder(folder, int(bits)), init or pretrained or state)
    with process_group(chosen) as group:
        console.speak_on_main_only(group)
        where = f"{chosen}, {torch.get_num_threads()} threads" + (f", {group.size} processes" if group.size > 1 else "")
        console.note(f"recipe {plan.name} ({plan.hash}), seed {plan.seed}, {where} → {folder}")
        board = TensorBoard(folder / "tensorboard") if tensorboard and group.is_main else Observer()
        with console.download_progress() as progress:
            splits = load_data(plan.data, size=plan.model.image_size, progress=progress)
        if isinstance(splits.train, PhotoSet):
            console.note(f"{len(splits.train):,} training photographs, decoded by {splits.train.loading}")
        start = load_start(init, network) if init else None
        if network is not None and (state or str(FLOAT_BITS) not in plan.phase):
            start = start or network  # its function may load weights
        if pretrained:
            start, mapped = pipeline.pretrained_model(plan, pretrained, splits.train)
            console.show_mapping(mapped)
        with Dashboard() if dashboard else TrainingConsole() as screen, closing(board):
            how = TrainOptions(chosen, compile_, precision, save_every, overwrite=overwrite, resume=resume)
            observer = Observers(screen, board)
            results = list(pipeline.train(plan, folder, how, splits=splits, model=network, init=start, observer=observer))
    if json_:
        phases = [{"bits": r.bits, "epochs": r.epochs, "last": r.last.to_dict(), "best": r.best.to_dict(),
                   "checkpoint": str(r.fit.best)} for r in results]  # fmt: skip
        console.show_json({"recipe": plan.to_dict(), "recipe_hash": plan.hash, "phases": phases})
    else:
        console.show_phases(results)
