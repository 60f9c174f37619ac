"""`nbsnn bench`."""

from typing import Annotated

import typer

from nbsnn import console, pipeline
from nbsnn.cli.app import app
from nbsnn.cli.networks import images_for, load, only_quantized, spec_of
from nbsnn.cli.options import (
    BatchOption,
    Checkpoint,
    DataOption,
    DownloadOption,
    JsonOption,
    OwnArgsOption,
    OwnOption,
    RootOption,
    SplitOption,
    StateOption,
    between,
)
from nbsnn.cli.own import Own
from nbsnn.evaluation.bench import Bench, images_to_time
from nbsnn.evaluation.bench import bench as run_bench
from nbsnn.integer.backends import backend_facts


@app.command()
def bench(
    checkpoint: Checkpoint = None,
    batch_size: BatchOption = 100,
    repeats: Annotated[
        int,
        typer.Option("--repeats", callback=between(1, 10_000), help="Timed rounds after a warm-up round; medians are printed."),
    ] = 5,
    limit: Annotated[int, typer.Option("--limit", callback=between(1), help="Images in each round.")] = 100,
    layers: Annotated[bool, typer.Option("--layers", help="Show the activity of every unit.")] = False,
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    state: StateOption = None,
    data: DataOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    split: SplitOption = "test",
    json_: JsonOption = False,
) -> None:
    """Time float, quantized, counts and spikes on this machine, and count synaptic operations.

    \b
    Example:
      nbsnn bench zoo:cifar10/resnet20-w2a2 --data sample --layers
    """
    own = Own(model, model_args, state)
    network, header = load(checkpoint, "cpu", own)
    quantized = only_quantized(network, checkpoint, "bench")
    images = images_for(header, split, limit, data=data, root=root, download=download, network=quantized)
    with console.doing("lowering to an integer network"):
        integer = pipeline.integer_form(quantized, images)
    float_net = own.network(spec_of(header)) or pipeline.float_form(header)
    with console.image_progress(images_to_time(len(images), repeats), "warming up") as tell:
        result = run_bench(
            float_net.eval(), quantized, integer, images.normalized(), batch_size=batch_size, repeats=repeats, progress=tell
        )
    if json_:
        console.show_json(result.to_dict() | {"checkpoint": str(checkpoint), "backends": backend_facts()})
        return
    _show_bench(result, str(checkpoint))
    if layers:
        _show_activity(result)


def _show_bench(result: Bench, title: str) -> None:
    rows = []
    for s in result.speeds:
        spread = f"{1000 * s.fastest:.0f} to {1000 * s.slowest:.0f}"
        rate = s.additions_per_second and s.additions_per_second / 1e9
        rows.append(
            (s.name, s.backend, f"{s.images_per_second:.0f}", f"{s.ratio:.2f}", spread, console.or_dash(s.steps, ".1f"),
             _millions(s.spikes), _millions(s.additions), console.or_dash(rate, ".2f"))
        )  # fmt: skip
    console.show_table(
        f"{title}, {result.images} images, batch {result.batch_size}, {result.threads} threads, T = {result.timesteps}",
        ("network", "backend", "images/s", "ratio", "ms, spread", "steps", "spikes, M", "adds, M", "adds/s, G"),
        rows,
    )
    console.say(
        "ratio: time over the float net's, which is eager, channels last, single precision\n"
        "spikes and additions are per image, counted one by one; an addition is a spike at a synapse of any weight"
    )


def _show_activity(result: Bench) -> None:
    names = list(result.layers)
    units = [[layer.name, str(layer.neurons)] for layer in result.layers[names[0]]]
    for name in names:
        for row, layer in zip(units, result.layers[name], strict=True):
            row.append(f"{layer.percent:.1f}")
    heads = (name.removeprefix("spikes, ") for name in names)
    console.show_table("Activity: spikes per neuron and step of T, in %", ("unit", "neurons", *heads), units)


def _millions(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.3f}"
