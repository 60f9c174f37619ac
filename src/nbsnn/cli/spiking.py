"""Verbs that run a network: eval, convert, classify."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from nbsnn import console, pipeline
from nbsnn.checkpoint import recipe_of, save_checkpoint
from nbsnn.cli.app import (
    BackendOption,
    Checkpoint,
    DataOption,
    DeviceOption,
    JsonOption,
    LimitOption,
    NeuronOption,
    RootOption,
    ScheduleOption,
    SplitOption,
    app,
    images_for,
    load,
)
from nbsnn.cli.integer import choose_engine, only_quantized
from nbsnn.data import load_photographs
from nbsnn.data.images import Batches
from nbsnn.distributed import process_group
from nbsnn.errors import ConfigError
from nbsnn.evaluation.accuracy import evaluate
from nbsnn.evaluation.classify import classify as classify_images
from nbsnn.evaluation.comparison import compare
from nbsnn.evaluation.comparison import convert as convert_with
from nbsnn.recipe import ModelSpec
from nbsnn.spiking.convert import VALID_PAIRS, check_pair


@app.command("eval")
def eval_(
    checkpoint: Checkpoint,
    data: DataOption = None,
    root: RootOption = None,
    split: SplitOption = "test",
    limit: LimitOption = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images at a time.")] = 100,
    device: DeviceOption = "auto",
    engine: Annotated[str | None, typer.Option("--engine", help="Run in integers: counts, or spikes step by step.")] = None,
    neuron: NeuronOption = None,
    schedule: ScheduleOption = None,
    backend: BackendOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Accuracy of a checkpoint of any form, and, where there is time, the steps that it took.

    Started by torchrun, several processes share the images.

    Example: nbsnn eval runs/r20/2bit/best.safetensors --root data --engine spikes --schedule settle
    """
    chosen = pipeline.pick_device(device)
    with process_group(chosen) as group:
        console.speak_on_main_only(group)
        model, header = load(checkpoint, device)
        images = images_for(header, data, root, split, limit).to(chosen)
        model, form = choose_engine(model, header, images, engine, neuron, schedule, backend)
        with console.image_progress(len(images) // group.size, f"{form} network") as tell:
            loader = Batches(images, batch_size, world=group)
            report = evaluate(model, loader, progress=lambda count: tell("", count))
    if json_:
        console.show_json(report.to_dict() | {"form": form, "checkpoint": str(checkpoint)})
        return
    steps = "-" if report.steps is None else f"{report.steps:.1f} (max {report.max_steps})"
    columns = ("form", "images", "top-1 %", "top-5 %", "steps", "seconds", "images/s")
    row = (form, str(report.images), f"{report.top1:.2f}", f"{report.top5:.2f}", steps,
           f"{report.seconds:.1f}", f"{report.images_per_second:.0f}")  # fmt: skip
    console.show_table(str(checkpoint), columns, [row])


@app.command()
def convert(
    checkpoint: Checkpoint,
    neuron: NeuronOption = None,
    schedule: ScheduleOption = None,
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
    model, header = load(checkpoint, device)
    model = only_quantized(model, checkpoint, "convert")
    images = images_for(header, data, root, split, limit)
    total = len(pairs) * (len(images) + min(fidelity_images, len(images)))
    with console.image_progress(total, "converting") as tell:
        results = list(compare(model, images, pairs=pairs, fidelity_images=fidelity_images, progress=tell))
    if out and schedule:
        spiking = convert_with(model, images, neuron=neuron, schedule=schedule)
        metrics = {"top1": results[0].spiking_top1, "source": str(checkpoint)}
        save_checkpoint(out, spiking, recipe=recipe_of(header), metrics=metrics)
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
def classify(
    checkpoint: Checkpoint,
    photographs: Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE...")],
    json_: JsonOption = False,
) -> None:
    """The five likeliest classes of photographs, computed in whole numbers from the pixels on.

    The largest square in the middle of a photograph is resized to the network's input. Example:
    nbsnn classify zoo:cifar10/resnet20-w2a2 cat.jpg
    """
    model, header = load(checkpoint, "cpu")
    quantized = only_quantized(model, checkpoint, "classify")
    recipe = recipe_of(header)
    if recipe is None or header["model"] is None:
        raise ConfigError(f"{checkpoint} does not say what it was trained on; classify takes networks of nbsnn train")
    spec = ModelSpec(**header["model"])
    images = load_photographs(recipe.data, photographs, size=spec.image_size, classes=spec.num_classes)
    guesses = classify_images(pipeline.integer_form(quantized, images), images)
    if json_:
        console.show_json({str(p): [asdict(guess) for guess in best] for p, best in zip(photographs, guesses, strict=True)})
        return
    for path, best in zip(photographs, guesses, strict=True):
        rows = [(guess.name, f"{guess.share:.1f}", f"{guess.logit:.3f}") for guess in best]
        console.show_table(path.name, ("class", "share %", "logit"), rows)
