"""Verbs that run a network and measure it: eval, convert."""

from pathlib import Path
from typing import Annotated

import typer

from nbsnn import console, pipeline
from nbsnn.checkpoint import save_checkpoint
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
from nbsnn.data.images import Batches
from nbsnn.errors import ConfigError
from nbsnn.evaluate.accuracy import evaluate
from nbsnn.recipe import recipe_from_dict
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

    Example: nbsnn eval runs/r20/2bit/best.safetensors --root data --engine spikes --schedule settle
    """
    model, header = load(checkpoint, device)
    images = images_for(header, data, root, split, limit)
    model, form = choose_engine(model, header, images, engine, neuron, schedule, backend)
    with console.image_progress(len(images), f"{form} network") as tell:
        report = evaluate(model, Batches(images, batch_size), progress=lambda count: tell("", count))
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
