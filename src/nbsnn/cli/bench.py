"""`nbsnn bench`."""

from typing import Annotated

import typer
from torch import Tensor

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
from nbsnn.data.images import LabelledImages
from nbsnn.evaluation.bench import Bench, images_to_time
from nbsnn.evaluation.bench import bench as run_bench
from nbsnn.evaluation.layer_speed import LayerSpeeds, measure_layers
from nbsnn.evaluation.neurobench import neurobench as run_neurobench
from nbsnn.integer.backends import backend_facts
from nbsnn.integer.backends.library import why_not
from nbsnn.integer.network import IntegerNetwork

_SCHEDULES = ("fixed", "settle", "barrier")
_NEUROBENCH_COLUMNS = (
    "neuron, schedule", "top-1 %", "activation sparsity", "MACs, M", "ACs, M", "+ zero weights", "+ skips", "+ pooled",
    "= synops, M",
)  # fmt: skip


@app.command()
def bench(
    checkpoint: Checkpoint = None,
    batch_size: BatchOption = 100,
    repeats: Annotated[
        int,
        typer.Option("--repeats", callback=between(1, 10_000), help="Timed rounds after a warm-up round; medians are printed."),
    ] = 5,
    limit: Annotated[int, typer.Option("--limit", callback=between(1), help="Images in each round.")] = 100,
    neurobench: Annotated[
        bool, typer.Option("--neurobench", help="Measure with NeuroBench's harness instead, beside the exact count.")
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Show every unit's activity, and speed over the limit.")] = False,
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
      nbsnn bench zoo:cifar10/resnet20-w2a2 --data sample --neurobench --limit 20
    """
    own = Own(model, model_args, state)
    network, header = load(checkpoint, "cpu", own)
    quantized = only_quantized(network, checkpoint, "bench")
    images = images_for(header, split, limit, data=data, root=root, download=download, network=quantized)
    with console.doing("lowering to an integer network"):
        integer = pipeline.integer_form(quantized, images)
    if neurobench:
        _neurobench(integer, images, str(checkpoint), json_=json_)
        return
    float_net = own.network(spec_of(header)) or pipeline.float_form(header)
    with console.image_progress(images_to_time(len(images), repeats), "warming up") as tell:
        result = run_bench(
            float_net.eval(), quantized, integer, images.normalized(), batch_size=batch_size, repeats=repeats, progress=tell
        )
    speeds = _layer_speeds(integer, images.pixels(slice(0, batch_size)), repeats) if layers else []
    if json_:
        facts = {"checkpoint": str(checkpoint), "backends": backend_facts()}
        console.show_json(result.to_dict() | facts | {"layer_speeds": [speed.to_dict() for speed in speeds]})
        return
    _show_bench(result, str(checkpoint))
    if layers:
        _show_activity(result)
    for speed in speeds:
        _show_layer_speeds(speed)


def _neurobench(network: IntegerNetwork, images: LabelledImages, title: str, *, json_: bool) -> None:
    """The harness under each schedule."""
    results = []
    with console.image_progress(len(_SCHEDULES) * len(images), "NeuroBench") as tell:
        for schedule in _SCHEDULES:
            measured = run_neurobench(
                network, images.pixels(slice(None)), images.labels, schedule=schedule, progress=lambda count: tell("", count)
            )
            results.append(measured)
    if json_:
        console.show_json({"checkpoint": title, "results": [each.to_dict() for each in results]})
        return
    first = results[0]
    rows = [
        (f"{r.neuron} {r.schedule}", f"{r.top1:.1f}", f"{r.activation_sparsity:.3f}",
         *map(_millions, (r.effective_macs, r.effective_acs, r.zero_weights, r.skips, r.pooled, r.synops)))
        for r in results
    ]  # fmt: skip
    console.show_table(
        f"{title} in NeuroBench, {first.images} images: {first.footprint / 1e3:.0f} kB, connection sparsity "
        f"{first.connection_sparsity:.3f}, {_millions(first.dense)} M operations if dense",
        _NEUROBENCH_COLUMNS,
        rows,
    )
    console.say("operations are per image; the four columns after MACs add up to our exact count, synops")


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


def _layer_speeds(network: IntegerNetwork, pixels: Tensor, repeats: int) -> list[LayerSpeeds]:
    """Speed of the layers under the engines that a limit is known for; none where the native backend cannot run."""
    if (obstacle := why_not()) is not None:
        console.note(f"no speed of single layers, which the native backend measures: {obstacle}")
        return []
    ways = [{"engine": "counts"}, *({"engine": "spikes", "neuron": neuron} for neuron in ("unsigned", "signed"))]
    return [measure_layers(network.using(**way), pixels, repeats=repeats) for way in ways]


def _show_layer_speeds(speeds: LayerSpeeds) -> None:
    rows = [
        (s.name, f"{s.synapses / 1e6:.2f}", f"{s.work_share:.1f}", f"{s.time_share:.1f}", f"{1e3 * s.seconds:.4f}",
         f"{s.achieved / 1e9:.0f}", f"{s.limit / 1e9:.0f}", f"{s.ratio:.2f}")
        for s in speeds.layers
    ]  # fmt: skip
    columns = ("layer", "synapses, M", "work %", "time %", "ms an image", "G/s", "limit, G/s", "ratio")
    console.show_table(f"{speeds.engine}: one thread, {speeds.target}, batch {speeds.batch}", columns, rows)
    limits = ", ".join(f"{rate.kind} {rate.instruction} {rate.per_second / 1e9:.0f}" for rate in speeds.rates)
    console.say(f"G/s: synapses with one step's spikes, or one bit of a count, a second; limits measured here: {limits}")


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
