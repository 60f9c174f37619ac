"""`nbsnn eval`."""

from typing import Annotated, NamedTuple, get_args

import typer
from torch import nn

from nbsnn import console, pipeline
from nbsnn.checkpoint import form_of
from nbsnn.cli.app import app
from nbsnn.cli.networks import check_t, images_for, load
from nbsnn.cli.options import (
    BackendOption,
    Checkpoint,
    DataOption,
    DeviceOption,
    DownloadOption,
    JsonOption,
    LimitOption,
    NeuronOption,
    OutputOption,
    OwnArgsOption,
    OwnOption,
    RootOption,
    ScheduleOption,
    SplitOption,
    StateOption,
    TimestepsOption,
    between,
    which_output,
)
from nbsnn.cli.own import Own
from nbsnn.data.images import Batches, LabelledImages
from nbsnn.device import pick_device
from nbsnn.distributed import process_group
from nbsnn.errors import ConfigError, unknown
from nbsnn.evaluation.accuracy import evaluate
from nbsnn.evaluation.engines import INTEGER_AT_A_TIME, integer_or_reason, measured, takes_pixels_of
from nbsnn.integer.backends import BACKENDS, Engine
from nbsnn.integer.network import IntegerNetwork
from nbsnn.spiking.convert import to_quantized
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.spiking.schedules import check_pair


@app.command("eval")
def eval_(
    checkpoint: Checkpoint = None,
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    state: StateOption = None,
    data: DataOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    split: SplitOption = "test",
    limit: LimitOption = 0,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", "-b", callback=between(1), help="Images at a time; 500 for integer networks, else 100."),
    ] = None,
    device: DeviceOption = "auto",
    engine: Annotated[
        str | None, typer.Option("--engine", help="Run as an integer network, counts or spikes; or float.")
    ] = None,
    neuron: NeuronOption = None,
    schedule: ScheduleOption = None,
    backend: BackendOption = "auto",
    timesteps: TimestepsOption = None,
    output: OutputOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure the accuracy of a checkpoint of any form and, for spiking and integer networks, the time steps.

    Quantized networks run in floating point; --engine runs them as integer networks, with counts or spikes. Spiking networks
    run as integer ones where they lower on a CPU, else, and with --engine float, as a simulation in floating point. Under
    torchrun, several processes share the images.

    \b
    Examples:
      nbsnn eval zoo:cifar10/resnet20-w2a2 --data sample
      nbsnn eval runs/r20/2bit/best.safetensors --engine spikes --limit 500
    """
    _check_ways(engine, neuron, schedule, backend)
    chosen = pick_device(device)
    with process_group(chosen) as group:
        console.speak_on_main_only(group)
        network, header = load(checkpoint, device, Own(model, model_args, state))
        check_t(network, timesteps)
        which = which_output(output)
        images = images_for(header, split, limit, data=data, root=root, download=download, network=network, output=which).to(
            chosen
        )
        found = choose_engine(network, images, engine, neuron, schedule, backend)
        with console.image_progress(len(images) // group.size, f"{found.form} network") as tell:
            at_a_time = batch_size or (INTEGER_AT_A_TIME if isinstance(found.network, IntegerNetwork) else 100)
            loader = Batches(images, at_a_time, world=group, pixels=takes_pixels_of(found.network, images))
            report = evaluate(found.network, loader, output=which, progress=lambda count: tell("", count))
    title = str(checkpoint or model)
    if json_:
        console.show_json(report.to_dict() | {"form": found.form, "engine": found.engine, "checkpoint": title})
        return
    steps = "-" if report.steps is None else f"{report.steps:.1f} (max {report.max_steps})"
    columns = ("form", "images", "top-1 %", "top-5 %", "steps", "seconds", "images/s")
    row = (found.form, str(report.images), f"{report.top1:.2f}", f"{report.top5:.2f}", steps,
           f"{report.seconds:.1f}", f"{report.images_per_second:.0f}")  # fmt: skip
    console.show_table(title, columns, [row])
    if found.form == "spiking":
        console.say(f"accuracy by {found.engine}")


def _check_ways(engine: str | None, neuron: str | None, schedule: str | None, backend: str) -> None:
    """Raise an error for options that do not go together, before anything is loaded."""
    if engine is not None and engine not in (*get_args(Engine), "float"):
        raise ConfigError(unknown("engine", engine, (*get_args(Engine), "float")))
    if backend not in ("auto", *BACKENDS):
        raise ConfigError(unknown("backend", backend, ("auto", *BACKENDS)))
    if engine == "spikes":
        check_pair(neuron, schedule or "fixed")
    elif neuron or schedule:
        raise ConfigError("--neuron and --schedule need spikes: add --engine spikes")


class Found(NamedTuple):
    """The network to evaluate, a description of its form, and the engine: "integer, native", or "float" and why."""

    network: nn.Module | IntegerNetwork
    form: str
    engine: str


def choose_engine(
    model: nn.Module | IntegerNetwork,
    images: LabelledImages,
    engine: str | None,
    neuron: str | None,
    schedule: str | None,
    backend: str,
) -> Found:
    """The network with `--engine` and related options."""
    floating = engine in (None, "float") and not isinstance(model, IntegerNetwork)
    if floating and backend != "auto":
        raise ConfigError(f"--backend {backend} applies to integer networks: add --engine counts or spikes")
    if isinstance(model, SpikingNetwork) and engine is None:
        integer = integer_or_reason(to_quantized(model), images)
        way = measured(model, integer, neuron=model.neuron, schedule=model.schedule)
        return Found(way.network, form_of(model), way.engine)
    if not isinstance(model, IntegerNetwork):
        if floating:
            return Found(model, form_of(model), "float simulation" if isinstance(model, SpikingNetwork) else "float")
        if form_of(model) != "quantized":
            raise ConfigError(f"--engine runs integer and quantized networks, and this is a {form_of(model)} one")
        device = next(model.parameters()).device
        with console.doing("lowering to an integer network"):
            model = pipeline.integer_form(model, images).to(device)
    elif engine == "float":
        raise ConfigError("--engine float runs networks in floating point, and this is an integer one")
    options = {"engine": engine or "counts", "backend": backend}
    if engine == "spikes":
        options |= {"schedule": schedule or "fixed"} | ({"neuron": neuron} if neuron else {})
    network = model.using(**options)
    used = network.backend
    words = [engine or "counts", *(word for word in (neuron, options.get("schedule")) if word), used]
    return Found(network, f"integer, {' '.join(words)}", f"integer, {used}")
