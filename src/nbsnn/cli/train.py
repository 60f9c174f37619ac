"""`nbsnn train`."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from nbsnn import console, pipeline
from nbsnn.checkpoint import load_checkpoint
from nbsnn.cli.app import app
from nbsnn.cli.options import DeviceOption, JsonOption, default_folder
from nbsnn.data import load_data
from nbsnn.data.photos import PhotoSet
from nbsnn.distributed import process_group
from nbsnn.errors import ConfigError
from nbsnn.recipes import load_recipe
from nbsnn.training.loop import SAVE_EVERY
from nbsnn.training_console import TrainingConsole


@app.command()
def train(
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A name of 'nbsnn recipes', or a TOML file.")],
    settings: Annotated[list[str], typer.Option("--set", "-s", help="key=value, such as phase.4.epochs=10; repeatable.")] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run; runs/<recipe> unless given.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of weights, order and augmentation.")] = None,
    device: DeviceOption = "auto",
    compile_: Annotated[str, typer.Option("--compile", help="Compile the training step: auto, on or off.")] = "auto",
    precision: Annotated[str, typer.Option("--precision", help="auto, float32 or bf16 (autocast).")] = "auto",
    init: Annotated[Path | None, typer.Option("--init", help="Checkpoint that the first phase starts from.")] = None,
    pretrained: Annotated[
        str | None,
        typer.Option("--pretrained", help="Start from TorchVision's: 'torchvision', or its state dict's file."),
    ] = None,
    save_every: Annotated[float, typer.Option("--save-every", min=0, help="Seconds between training states.")] = SAVE_EVERY,
    resume: Annotated[bool, typer.Option("--resume", help="Insist that there is a run to go on with.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train anew where the folder holds results.")] = False,
    json_: JsonOption = False,
) -> None:
    """Train a recipe's phases, 32 → 4 → 3 → 2 bits. The same command goes on with an unfinished run, on the same
    processor or GPU bit for bit.

    Ctrl-C saves and leaves; a run that was killed goes on from its last training state. Started by torchrun, several
    processes train together, on any number of machines.

    Example: nbsnn train --recipe cifar10/resnet20:fast --set data.root=data --out runs/r20

    torchrun --nproc-per-node 8 -m nbsnn train --recipe imagenet/alexnet --pretrained torchvision --set data.root=/data/imagenet
    """
    plan = load_recipe(recipe, settings if seed is None else [*settings, f"seed={seed}"])
    if init and pretrained:
        raise ConfigError("--init and --pretrained both name a start; give one of them")
    chosen = pipeline.pick_device(device)
    folder = out or default_folder(recipe)
    with process_group(chosen) as group:
        console.speak_on_main_only(group)
        where = f"{chosen}, {torch.get_num_threads()} threads" + (f", {group.size} processes" if group.size > 1 else "")
        console.note(f"recipe {plan.name} ({plan.hash}), seed {plan.seed}, {where} → {folder}")
        with console.download_progress() as progress:
            splits = load_data(plan.data, size=plan.model.image_size, progress=progress)
        if isinstance(splits.train, PhotoSet):
            console.note(f"{len(splits.train):,} training photographs, decoded by {splits.train.loading}")
        start = load_checkpoint(init) if init else None
        if pretrained:
            start, mapped = pipeline.pretrained_model(plan, pretrained, splits.train)
            console.show_mapping(mapped)
        with TrainingConsole() as observer:
            found = pipeline.train(
                plan, folder, splits=splits, init=start, device=chosen, compile=compile_, precision=precision,
                save_every=save_every, observer=observer, overwrite=overwrite, resume=resume,
            )  # fmt: skip
            results = list(found)
    if json_:
        phases = [{"bits": r.bits, "epochs": r.epochs, "last": r.last.to_dict(), "best": r.best.to_dict(),
                   "checkpoint": str(r.fit.best)} for r in results]  # fmt: skip
        console.show_json({"recipe": plan.to_dict(), "recipe_hash": plan.hash, "phases": phases})
    else:
        console.show_phases(results)
