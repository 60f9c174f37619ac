"""The command line: each verb parses, calls one library function, and prints."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from nbsnn import console, pipeline
from nbsnn.checkpoint import Header, form_of, load_checkpoint, read_tensors, save_checkpoint
from nbsnn.cli_finetune import finetune_
from nbsnn.cli_options import (
    Checkpoint,
    DataOption,
    DeviceOption,
    JsonOption,
    LimitOption,
    RootOption,
    SplitOption,
    data_spec,
    load_form,
    load_splits,
)
from nbsnn.data import load_data
from nbsnn.data.images import Batches, ImageSet
from nbsnn.errors import ConfigError, unknown
from nbsnn.evaluate.accuracy import evaluate
from nbsnn.recipe import list_recipes, load_recipe, recipe_from_dict
from nbsnn.spiking.convert import VALID_PAIRS, check_pair
from nbsnn.summary import summarize, system_facts

app = typer.Typer(
    help="Train few-bit networks, run them as spiking networks in T = 2^b - 1 steps, and see exactly how far spikes are off.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.command()
def train(
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A name of 'nbsnn recipes', or a TOML file.")],
    settings: Annotated[list[str], typer.Option("--set", "-s", help="key=value, such as phase.4.epochs=10; repeatable.")] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the run; runs/<recipe> unless given.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of weights, order and augmentation.")] = None,
    device: DeviceOption = "auto",
    init: Annotated[Path | None, typer.Option("--init", help="Checkpoint that the first phase starts from.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train anew where the folder holds results.")] = False,
    json_: JsonOption = False,
) -> None:
    """Train a recipe's phases, 32 → 4 → 3 → 2 bits. The same command goes on with an unfinished run.

    Example: nbsnn train --recipe cifar10/resnet20:fast --set data.root=data --out runs/r20
    """
    plan = load_recipe(recipe, settings if seed is None else [*settings, f"seed={seed}"])
    chosen = pipeline.pick_device(device)
    folder = out or Path("runs") / recipe.replace(":", "-").removesuffix(".toml")
    start = load_checkpoint(init) if init else None
    console.note(
        f"recipe {plan.name} ({plan.hash}), seed {plan.seed}, {chosen}, float32, channels last, "
        f"{torch.get_num_threads()} threads → {folder}"
    )
    with console.download_progress() as progress:
        splits = load_data(plan.data, progress=progress)
    results = []
    with console.TrainingConsole() as observer:
        for result in pipeline.train(
            plan, folder, splits=splits, init=start, device=chosen, observer=observer, overwrite=overwrite
        ):
            results.append(result)
    if json_:
        phases = [{"bits": r.bits, "epochs": r.epochs, "last": r.last.to_dict(), "best": r.best.to_dict(),
                   "checkpoint": str(r.fit.best)} for r in results]  # fmt: skip
        console.show_json({"recipe": plan.to_dict(), "recipe_hash": plan.hash, "phases": phases})
    else:
        console.show_phases(results)


@app.command("eval")
def eval_(
    checkpoint: Checkpoint,
    data: DataOption = None,
    root: RootOption = None,
    split: SplitOption = "test",
    limit: LimitOption = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images at a time.")] = 100,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Accuracy of a checkpoint of any form, and, if it is spiking, the steps that it took.

    Example: nbsnn eval runs/r20/2bit/best.safetensors --root data
    """
    model, header = load_form(checkpoint, device)
    images = _images(header, data, root, split, limit)
    with console.image_progress(len(images), f"{form_of(model)} network") as tell:
        report = evaluate(model, Batches(images, batch_size), progress=lambda count: tell("", count))
    if json_:
        console.show_json(report.to_dict() | {"form": form_of(model), "checkpoint": str(checkpoint)})
        return
    steps = "-" if report.steps is None else f"{report.steps:.1f} (max {report.max_steps})"
    columns = ("form", "images", "top-1 %", "top-5 %", "steps", "seconds", "images/s")
    row = (form_of(model), str(report.images), f"{report.top1:.2f}", f"{report.top5:.2f}", steps,
           f"{report.seconds:.1f}", f"{report.images_per_second:.0f}")  # fmt: skip
    console.show_table(str(checkpoint), columns, [row])


@app.command()
def convert(
    checkpoint: Checkpoint,
    neuron: Annotated[str | None, typer.Option("--neuron", help="signed or unsigned.")] = None,
    schedule: Annotated[str | None, typer.Option("--schedule", help="fixed, settle or barrier.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the spiking network here; needs --schedule.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer's fidelity.")] = False,
    fidelity_images: Annotated[int, typer.Option("--fidelity-images", min=1, help="Images compared neuron by neuron.")] = 200,
    data: DataOption = None,
    root: RootOption = None,
    split: SplitOption = "test",
    limit: LimitOption = 0,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Turn a quantized checkpoint into a spiking network, and say how well and how exactly its spikes follow.

    Without --schedule, every neuron and schedule is compared. Example:
    nbsnn convert runs/r20/2bit/best.safetensors --schedule settle --out r20-settle.safetensors
    """
    if schedule is None and (out or neuron):
        raise ConfigError("--out and --neuron need a schedule: add --schedule fixed, settle or barrier")
    pairs = VALID_PAIRS if schedule is None else (check_pair(neuron, schedule),)
    model, header = load_form(checkpoint, device)
    if form_of(model) != "quantized":
        raise ConfigError(f"{checkpoint} holds a {form_of(model)} network; convert takes a quantized one")
    images = _images(header, data, root, split, limit)
    total = len(pairs) * (len(images) + min(fidelity_images, len(images)))
    with console.image_progress(total, "converting") as tell:
        results = list(pipeline.compare(model, images, pairs=pairs, fidelity_images=fidelity_images, progress=tell))
    if out and schedule:
        spiking = pipeline.convert(model, images, neuron=neuron, schedule=schedule)
        recipe = recipe_from_dict(header["recipe"]) if header["recipe"] else None
        save_checkpoint(out, spiking, recipe=recipe, metrics={"top1": results[0].spiking_top1, "source": str(checkpoint)})
        console.note(f"wrote {out}")
    if json_:
        console.show_json({"checkpoint": str(checkpoint), "results": [r.to_dict() for r in results]})
        return
    console.show_table(
        f"{checkpoint}, {len(images)} images", console.COMPARISON_COLUMNS, console.comparison_rows(results, None)
    )
    for result in results if layers else ():
        console.note(f"{result.neuron} {result.schedule}")
        console.show_layers(result.fidelity)


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Show this one whole.")] = None, json_: JsonOption = False) -> None:
    """List the bundled recipes, or show one with all its settings."""
    if name:
        recipe = load_recipe(name)
        console.show_json(recipe.to_dict() | {"hash": recipe.hash})
        return
    known = [load_recipe(known) for known in list_recipes()]
    if json_:
        console.show_json({r.name: r.to_dict() for r in known})
        return
    rows = [(r.name, r.model.name, r.data.name, " → ".join(r.phase), str(sum(p.epochs for p in r.phase.values())), r.hash)
            for r in known]  # fmt: skip
    console.show_table("Recipes", ("name", "model", "data", "bits", "epochs", "hash"), rows)


@app.command()
def info(
    checkpoint: Annotated[Path | None, typer.Argument(help="A checkpoint that nbsnn wrote.", metavar="[CHECKPOINT]")] = None,
    system: Annotated[bool, typer.Option("--system", help="Describe this machine and the versions instead.")] = False,
    json_: JsonOption = False,
) -> None:
    """Form, bits, layers and sizes of a checkpoint; or, with --system, what nbsnn runs on."""
    if system or checkpoint is None:
        if not system:
            raise ConfigError("info: name a checkpoint, or ask for --system")
        facts = system_facts()
        if json_:
            console.show_json(facts)
        else:
            console.show_table("System", ("what", "value"), ((key, str(value)) for key, value in facts.items()))
        return
    header, tensors = read_tensors(checkpoint)
    size, parameters, layers = summarize(header, tensors)
    if json_:
        console.show_json(header | {"parameters": parameters, "bytes": size})
        return
    model = header["model"]["name"] if header["model"] else "own network"
    spiking = header["spiking"]
    extra = f", {spiking['neuron']} neurons, {spiking['schedule']} schedule, T = {spiking['timesteps']}" if spiking else ""
    console.out.print(f"{model}, {header['form']} form{extra}: {parameters:,} parameters, {size / 1e6:.2f} MB", highlight=False)
    versions = ", ".join(f"{key} {value}" for key, value in header["versions"].items())
    console.out.print(
        f"recipe {header['recipe_hash']}, seed {header['seed']}, {header['metrics']}, {versions}", highlight=False
    )
    console.show_table("Layers", ("layer", "weight", "bits", "detail"), layers)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option("--seed", help="Of weights and order.")] = 0,
    settings: Annotated[list[str], typer.Option("--set", "-s", help="key=value of the recipe digits/resnet20.")] = [],  # noqa: B006
    limit: LimitOption = 0,
    json_: JsonOption = False,
) -> None:
    """The whole path on handwritten digits: four phases of training, then every neuron and schedule, in one table."""
    plan = load_recipe("digits/resnet20", [*settings, f"seed={seed}"])
    console.note(f"ResNet-20 on 8×8 digits: float, then 4, 3 and 2 bits → {out}")
    splits = load_data(plan.data)
    with console.TrainingConsole() as observer:
        phases = list(pipeline.train(plan, out, splits=splits, observer=observer, overwrite=True))
    test = splits.test.take(slice(0, limit or None))
    float_top1 = next((p.best.top1 for p in phases if p.bits == 32), None)
    results: list[pipeline.Comparison] = []
    quantized = [p for p in phases if p.bits != 32]
    with console.image_progress(len(quantized) * len(VALID_PAIRS) * 2 * len(test), "converting") as tell:
        for phase in quantized:
            model = load_checkpoint(phase.fit.best)
            results += pipeline.compare(model, test, fidelity_images=len(test), progress=tell)
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


# ----------------------------------------------------------------------------------------------------------- in common


def _images(header: Header, data: str | None, root: Path | None, split: str, limit: int) -> ImageSet:
    if split not in ("test", "validation", "train"):
        raise ConfigError(unknown("split", split, ("test", "validation", "train")))
    images: ImageSet = getattr(load_splits(header, data_spec(header, data, root)), split)
    return images.take(slice(0, limit or None))


app.command("finetune")(finetune_)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input (one line on standard error), 130 if interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return console.exit_code(lambda: app(args=words, prog_name="nbsnn", standalone_mode=False))
