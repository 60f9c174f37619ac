"""`nbsnn info`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor

from nbsnn import console
from nbsnn.cli.app import app
from nbsnn.cli.options import JsonOption
from nbsnn.errors import ConfigError
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.storage import program_from
from nbsnn.summary import summarize, system_facts
from nbsnn.tensorfile import Header, read_network
from nbsnn.zoo import locate


@app.command()
def info(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A file written by nbsnn, or zoo:NAME.", metavar="[CHECKPOINT]")
    ] = None,
    system: Annotated[bool, typer.Option("--system", help="Describe this machine and the versions instead.")] = False,
    json_: JsonOption = False,
) -> None:
    """Show form, bits, layers and sizes of a checkpoint or, with --system, versions and devices of this machine.

    \b
    Examples:
      nbsnn info zoo:cifar10/resnet20-w2a2
      nbsnn info --system
    """
    if system == (checkpoint is not None):
        raise ConfigError("info describes a checkpoint, or with --system this machine; give one of the two")
    if checkpoint is None:
        facts = system_facts()
        if json_:
            console.show_json(facts)
        else:
            console.show_table("System", ("what", "value"), ((key, str(value)) for key, value in facts.items()))
        return
    header, tensors = read_network(checkpoint)
    if header["form"] == "integer":
        show_integer(checkpoint, header, tensors, json_=json_)
        return
    on_disk = locate(checkpoint).stat().st_size
    size, parameters, layers, exact = summarize(header, tensors, source=str(checkpoint))
    if json_:
        console.show_json(header | {"parameters": parameters, "bytes": size, "file_bytes": on_disk})
        return
    model = header["model"]["name"] if header["model"] else "own network"
    form = f"{header['form']} form" + (", packed" if header.get("packed") else "")
    spiking = header["spiking"]
    extra = f", {spiking['neuron']} neurons, {spiking['schedule']} schedule, T = {spiking['timesteps']}" if spiking else ""
    count = f"{'' if exact else 'at most '}{parameters:,} parameters"
    console.say(f"{model}, {form}{extra}: {count}, {size / 1e6:.2f} MB of tensors, {on_disk / 1e6:.2f} MB on disk")
    metrics = ", ".join(f"{key} {value}" for key, value in header["metrics"].items())
    versions = ", ".join(f"{key} {value}" for key, value in header["versions"].items())
    console.say(f"recipe {header['recipe_hash']}, seed {header['seed']}; {metrics or 'no metrics'}; {versions}")
    console.show_table("Layers", ("layer", "weight", "bits", "detail"), layers)


def show_integer(path: Path, header: Header, tensors: Mapping[str, Tensor], *, json_: bool) -> None:
    """Print the information on a file with an integer network."""
    network = IntegerNetwork(program_from(header, tensors, source=str(path)))
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    if json_:
        rows = [row.to_dict() for row in network.report()]
        kept = {key: header[key] for key in ("format", "form", "content_hash", "model", "versions")}
        console.show_json(kept | {"timesteps": network.timesteps, "bytes": size, "units": rows,
                                   "notes": list(network.program.notes)})  # fmt: skip
        return
    name = (header["model"] or {}).get("name", "own network")
    console.say(f"{name}, integer form, T = {network.timesteps}: {size / 1e6:.2f} MB, hash {header['content_hash'][:12]}")
    console.show_units("Units", network)
