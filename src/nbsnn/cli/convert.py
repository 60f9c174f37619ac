"""`nbsnn convert`."""

from pathlib import Path
from typing import Annotated

import typer

from nbsnn import console
from nbsnn.checkpoint import recipe_of, save_checkpoint
from nbsnn.cli.app import app
from nbsnn.cli.networks import check_t, images_for, load, only_quantized
from nbsnn.cli.options import (
    Checkpoint,
    ComparedOption,
    DataOption,
    DeviceOption,
    DownloadOption,
    JsonOption,
    LimitOption,
    NeuronOption,
    OutputOption,
    OverwriteOption,
    OwnArgsOption,
    OwnOption,
    RootOption,
    ScheduleOption,
    SplitOption,
    StateOption,
    TimestepsOption,
    which_output,
)
from nbsnn.cli.own import Own
from nbsnn.errors import ConfigError
from nbsnn.evaluation.comparison import compare, spiking_form
from nbsnn.outputs import check_output, network_kind
from nbsnn.spiking.schedules import check_pair, valid_pairs


@app.command()
def convert(
    checkpoint: Checkpoint = None,
    neuron: NeuronOption = None,
    schedule: ScheduleOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the spiking network here; needs --schedule.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer's fidelity.")] = False,
    fidelity_images: ComparedOption = 200,
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    state: StateOption = None,
    data: DataOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    split: SplitOption = "test",
    limit: LimitOption = 0,
    device: DeviceOption = "auto",
    timesteps: TimestepsOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    json_: JsonOption = False,
) -> None:
    """Convert a quantized checkpoint to a spiking network, and compare the two.

    Without --schedule, every neuron and schedule is compared. Accuracies are the integer network's where it lowers on a CPU;
    neurons are compared with the simulation in floating point, on --fidelity-images.

    \b
    Examples:
      nbsnn convert zoo:cifar10/resnet20-w2a2 --data sample
      nbsnn convert r20/2bit/best.safetensors --schedule settle -o s.safetensors
    """
    if schedule is None and (out or neuron):
        raise ConfigError("--out and --neuron need a schedule: add --schedule fixed, settle or barrier")
    if out:
        check_output(out, network_kind("spiking"), inputs=[checkpoint] if checkpoint else [], overwrite=overwrite)
    pairs = valid_pairs() if schedule is None else (check_pair(neuron, schedule),)
    network, header = load(checkpoint, device, Own(model, model_args, state))
    quantized = only_quantized(network, checkpoint, "convert")
    check_t(quantized, timesteps)
    which = which_output(output)
    images = images_for(header, split, limit, data=data, root=root, download=download, network=quantized, output=which)
    total = len(pairs) * (len(images) + min(fidelity_images, len(images)))
    with console.image_progress(total, "converting") as tell:
        results = list(compare(quantized, images, pairs=pairs, fidelity_images=fidelity_images, output=which, progress=tell))
    if out and schedule:
        spiking = spiking_form(quantized, images, neuron=neuron, schedule=schedule)
        metrics = {"top1": results[0].spiking_top1, "source": str(checkpoint)}
        save_checkpoint(out, spiking, recipe=recipe_of(header), metrics=metrics)
        console.note(f"wrote {out}")
    if json_:
        console.show_json({"checkpoint": str(checkpoint), "results": [r.to_dict() for r in results]})
        return
    console.show_comparisons(f"{checkpoint}, {len(images)} images", results)
    for result in results if layers else ():
        console.note(f"{result.neuron} {result.schedule}")
        console.show_layers(result.fidelity)
