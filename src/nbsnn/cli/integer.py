"""Verbs of the command line for integer networks: lower, bench, and what eval and info say of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor, nn

from nbsnn import console, pipeline
from nbsnn.checkpoint import form_of
from nbsnn.cli.app import Checkpoint, DataOption, JsonOption, RootOption, SplitOption, app, images_for, load
from nbsnn.data.images import LabelledImages
from nbsnn.errors import ConfigError
from nbsnn.evaluation.bench import CONTENDERS, Bench
from nbsnn.evaluation.bench import bench as run_bench
from nbsnn.evaluation.fidelity import measure_integer_fidelity
from nbsnn.integer.engines import backend_facts
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.storage import program_from
from nbsnn.tensorfile import Header

FloatBits = Annotated[int, typer.Option("--float-weight-bits", help="8 or 16, for weights that are not quantized.")]


@app.command()
def lower(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("--out", "-o", help="Write the integer network here, as .safetensors.")],
    float_weight_bits: FloatBits = 8,
    fidelity_images: Annotated[int, typer.Option("--fidelity-images", min=0, help="Images whose counts are compared.")] = 100,
    data: DataOption = None,
    root: RootOption = None,
    split: SplitOption = "test",
    json_: JsonOption = False,
) -> None:
    """Turn a quantized checkpoint into an integer network: the same bits on every machine, and what a chip would run.

    Example: nbsnn lower runs/r20/2bit/best.safetensors --out r20-int.safetensors
    """
    model, header = load(checkpoint, "cpu")
    quantized = only_quantized(model, checkpoint, "lower")
    images = images_for(header, data, root, split, fidelity_images or 1)
    network = pipeline.integer_form(
        quantized, images, float_weight_bits=float_weight_bits, origin=origin_of(header, checkpoint)
    )
    network.save(out)
    console.note(f"wrote {out}")
    fidelity = None
    if fidelity_images:
        with console.image_progress(len(images), "comparing counts") as tell:
            fidelity = measure_integer_fidelity(
                quantized, network, images.normalized(), labels=images.labels, progress=lambda count: tell("", count)
            )
    if json_:
        rows = [row.to_dict() for row in network.report()]
        console.show_json({"file": str(out), "timesteps": network.timesteps, "units": rows,
                           "notes": list(network.program.notes), "fidelity": fidelity and fidelity.to_dict()})  # fmt: skip
        return
    _show_units(network, str(out))
    if fidelity:
        console.out.print(
            f"counts that differ from the simulated quantized network: {fidelity.off:.4f} % on {fidelity.images} images; "
            f"same class for {fidelity.agreement:.1f} %",
            highlight=False,
        )


@app.command()
def bench(
    checkpoint: Checkpoint,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images at a time.")] = 100,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed rounds after one to warm up; medians count.")] = 5,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Images in each round.")] = 100,
    layers: Annotated[bool, typer.Option("--layers", help="Show the activity of every unit.")] = False,
    data: DataOption = None,
    root: RootOption = None,
    split: SplitOption = "test",
    json_: JsonOption = False,
) -> None:
    """Time float, quantized, counts and spikes against each other on this machine, and count what spikes cost.

    Example: nbsnn bench runs/r20/2bit/best.safetensors --layers
    """
    model, header = load(checkpoint, "cpu")
    quantized = only_quantized(model, checkpoint, "bench")
    images = images_for(header, data, root, split, limit)
    network = pipeline.integer_form(quantized, images)
    float_net = pipeline.float_form(header)
    with console.image_progress((repeats + 1) * len(images) * CONTENDERS, "warming up") as tell:
        result = run_bench(
            float_net, quantized, network, images.normalized(), batch_size=batch_size, repeats=repeats, progress=tell
        )
    if json_:
        console.show_json(result.to_dict() | {"checkpoint": str(checkpoint), "backends": backend_facts()})
        return
    _show_bench(result, str(checkpoint))
    if layers:
        _show_activity(result)


# ------------------------------------------------------------------------------------------------------ for other verbs


def only_quantized(model: nn.Module | IntegerNetwork, checkpoint: Path, verb: str) -> nn.Module:
    """The network, if it is a quantized one."""
    if isinstance(model, IntegerNetwork):
        raise ConfigError(f"{checkpoint} holds an integer network; {verb} takes a quantized one: name what it was lowered from")
    form = form_of(model)
    if form != "quantized":
        remedy = "quantize it with nbsnn train --init first" if form == "float" else "name the one that it was made from"
        raise ConfigError(f"{checkpoint} holds a {form} network; {verb} takes a quantized one: {remedy}")
    return model


def origin_of(header: Header, checkpoint: Path) -> dict[str, object]:
    """What an integer network's file says of its source."""
    return {"model": header["model"], "recipe": header["recipe"], "metrics": header["metrics"], "source": checkpoint.name}


def choose_engine(
    model: nn.Module | IntegerNetwork,
    header: Header,
    images: LabelledImages,
    engine: str | None,
    neuron: str | None,
    schedule: str | None,
    backend: str,
) -> tuple[nn.Module | IntegerNetwork, str]:
    """The network as `--engine` and its companions want it, and its form in words."""
    if engine != "spikes" and (neuron or schedule):
        raise ConfigError("--neuron and --schedule say how spikes run: add --engine spikes")
    if engine is None and backend != "auto" and not isinstance(model, IntegerNetwork):
        raise ConfigError(f"--backend {backend} says what runs an integer network: add --engine counts or spikes")
    if engine is None and not isinstance(model, IntegerNetwork):
        return model, form_of(model)
    if not isinstance(model, IntegerNetwork):
        if form_of(model) != "quantized":
            raise ConfigError(f"--engine runs integer and quantized networks, and this is a {form_of(model)} one")
        device = next(model.parameters()).device
        model = pipeline.integer_form(model, images).to(device)
    options = {"engine": engine or "counts", "backend": backend}
    if engine == "spikes":
        options |= {"schedule": schedule or "fixed"} | ({"neuron": neuron} if neuron else {})
    network = model.using(**options)
    used = network.backend
    words = [engine or "counts", *(word for word in (neuron, options.get("schedule")) if word), used]
    return network, f"integer, {' '.join(words)}"


def show_integer(path: Path, header: Header, tensors: Mapping[str, Tensor], *, json_: bool) -> None:
    """What `nbsnn info` says of a file that holds an integer network."""
    network = IntegerNetwork(program_from(header, tensors, source=str(path)))
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    if json_:
        rows = [row.to_dict() for row in network.report()]
        kept = {key: header[key] for key in ("format", "form", "content_hash", "model", "versions")}
        console.show_json(kept | {"timesteps": network.timesteps, "bytes": size, "units": rows,
                                   "notes": list(network.program.notes)})  # fmt: skip
        return
    name = (header["model"] or {}).get("name", "own network")
    console.out.print(
        f"{name}, integer form, T = {network.timesteps}: {size / 1e6:.2f} MB, hash {header['content_hash'][:12]}",
        highlight=False,
    )
    _show_units(network, "Units")


# ------------------------------------------------------------------------------------------------------------- tables


def _show_units(network: IntegerNetwork, title: str) -> None:
    rows = []
    for row in network.report():
        bound = "-" if row.bound_bits is None else f"2^{row.bound_bits:.1f} of {52 if row.wide else 31}"
        shape = "×".join(map(str, row.shape))
        rows.append((row.name, shape, row.weights, _or_dash(row.fraction_bits), _or_dash(row.smallest_multiplier), bound))
    console.show_table(title, ("unit", "shape", "weights", "F", "min |M|", "largest sum"), rows)
    for note in network.program.notes:
        console.out.print(note, highlight=False)


def _show_bench(result: Bench, title: str) -> None:
    rows = []
    for s in result.speeds:
        spread = f"{1000 * s.fastest:.0f} to {1000 * s.slowest:.0f}"
        rate = s.additions_per_second and s.additions_per_second / 1e9
        rows.append(
            (s.name, s.backend, f"{s.images_per_second:.0f}", f"{s.ratio:.2f}", spread, _or_dash(s.steps, ".1f"),
             _millions(s.spikes), _millions(s.additions), _or_dash(rate, ".2f"))
        )  # fmt: skip
    console.show_table(
        f"{title}, {result.images} images, batch {result.batch_size}, {result.threads} threads, T = {result.timesteps}",
        ("network", "code", "images/s", "ratio", "ms, spread", "steps", "spikes, M", "adds, M", "adds/s, G"),
        rows,
    )
    console.out.print(
        "ratio: time over the float net's, which is eager, channels last, single precision\n"
        "spikes and additions are per image; an addition is a spike at a synapse",
        highlight=False,
    )


def _show_activity(result: Bench) -> None:
    names = list(result.layers)
    units = [[layer.name, str(layer.neurons)] for layer in result.layers[names[0]]]
    for name in names:
        for row, layer in zip(units, result.layers[name], strict=True):
            row.append(f"{layer.percent:.1f}")
    heads = (name.removeprefix("spikes, ") for name in names)
    console.show_table("Activity: spikes per neuron and step of T, in %", ("unit", "neurons", *heads), units)


def _or_dash(value: float | None, form: str = "") -> str:
    return "-" if value is None else format(value, form)


def _millions(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.3f}"
