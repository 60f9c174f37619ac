"""Verbs about training runs: train, report, demo."""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from nbsnn import console, pipeline
from nbsnn.checkpoint import load_checkpoint
from nbsnn.cli.app import DeviceOption, JsonOption, LimitOption, app, default_folder
from nbsnn.data import load_data
from nbsnn.data.images import Batches
from nbsnn.data.photos import PhotoSet
from nbsnn.data.sample import load_sample
from nbsnn.distributed import process_group
from nbsnn.errors import ConfigError
from nbsnn.evaluation.accuracy import evaluate
from nbsnn.evaluation.comparison import Comparison, compare
from nbsnn.recipes import load_recipe
from nbsnn.report import images_looked_at
from nbsnn.report import report as measure_run
from nbsnn.spiking.convert import VALID_PAIRS
from nbsnn.tensorfile import write_text
from nbsnn.training.loop import SAVE_EVERY
from nbsnn.training_console import TrainingConsole
from nbsnn.zoo import PREFIX, list_zoo


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


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option("--seed", help="Of weights and order.")] = 0,
    settings: Annotated[list[str], typer.Option("--set", "-s", help="key=value of the recipe digits/resnet20.")] = [],  # noqa: B006
    limit: LimitOption = 0,
    json_: JsonOption = False,
) -> None:
    """The whole path on handwritten digits: four phases of training, then every neuron and schedule, in one table.

    It ends with the bundled networks on real images.
    """
    plan = load_recipe("digits/resnet20", [*settings, f"seed={seed}"])
    console.note(f"ResNet-20 on 8×8 digits: float, then 4, 3 and 2 bits → {out}")
    splits = load_data(plan.data)
    with TrainingConsole() as observer:
        phases = list(pipeline.train(plan, out, splits=splits, observer=observer, overwrite=True))
    test = splits.test.some(limit)
    float_top1 = next((p.best.top1 for p in phases if p.bits == 32), None)
    results: list[Comparison] = []
    quantized = [p for p in phases if p.bits != 32]
    with console.image_progress(len(quantized) * len(VALID_PAIRS) * 2 * len(test), "converting") as tell:
        for phase in quantized:
            model = load_checkpoint(phase.fit.best)
            results += compare(model, test, fidelity_images=len(test), progress=tell)
    if json_:
        console.show_json({"float_top1": float_top1, "results": [r.to_dict() for r in results]})
        return
    console.show_table(
        f"Digits, {len(test)} test images, ResNet-20", console.COMPARISON_COLUMNS, console.comparison_rows(results, float_top1)
    )
    console.out.print(
        "quantized, spiking: top-1 in %.  neurons off: share whose spike count differs from the quantized activation.\n"
        "fixed stops after T steps, as published; settle and barrier are exact.",
        highlight=False,
    )
    _show_zoo()


def _show_zoo() -> None:
    sample = load_sample().test
    rows = []
    for name in list_zoo():
        network = load_checkpoint(PREFIX + name)
        integer = pipeline.integer_form(network, sample)
        reports = [evaluate(form, Batches(sample, 100)) for form in (network, integer)]
        rows.append((PREFIX + name, *(f"{r.top1:.2f}" for r in reports), *(f"{r.images_per_second:.0f}" for r in reports)))
    columns = ("network", "quantized", "in integers", "images/s", "images/s, integers")
    console.show_table(f"Bundled networks, {len(sample)} test images of CIFAR-10 (JPEG q75), top-1 in %", columns, rows)


@app.command()
def report(
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="The recipe that the run was trained with.")],
    settings: Annotated[list[str], typer.Option("--set", "-s", help="key=value, as they were given to train.")] = [],  # noqa: B006
    run: Annotated[Path | None, typer.Option("--run", help="Folder of the run; runs/<recipe> unless given.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the figures here, as JSON.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="What the data is called; its name unless given.")] = None,
    notes: Annotated[list[str], typer.Option("--note", help="A remark kept beside the figures; repeatable.")] = [],  # noqa: B006
    limit: LimitOption = 0,
    spiking_limit: Annotated[int, typer.Option("--spiking-limit", min=0, help="Step only so many of them; 0 is all.")] = 0,
    fidelity_images: Annotated[int, typer.Option("--fidelity-images", min=1, help="Images compared neuron by neuron.")] = 200,
    json_: JsonOption = False,
) -> None:
    """Measure a finished run: every phase, neuron and schedule, with machine, versions, seed and recipe hash.

    Example: nbsnn report --recipe cifar10/resnet20:fast --set data.root=data --out resnet20.json
    """
    plan = load_recipe(recipe, settings)
    test = load_data(plan.data, size=plan.model.image_size).test.some(limit)
    stepped = spiking_limit or None
    with console.image_progress(images_looked_at(plan, len(test), stepped, fidelity_images), "measuring") as tell:
        figures = measure_run(
            plan, run or default_folder(recipe), test, label=label or plan.data.name, fidelity_images=fidelity_images,
            spiking_images=stepped, notes=notes, progress=tell,
        )  # fmt: skip
    if out:
        write_text(out, json.dumps(figures, indent=1) + "\n")
        console.note(f"wrote {out}")
    if json_:
        console.show_json(figures)
    else:
        console.show_report(figures)
