"""`nbsnn info`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from torch import Tensor, nn

from nbsnn import console
from nbsnn.checkpoint import describe
from nbsnn.cli.app import app
from nbsnn.cli.networks import name_of, spec_of
from nbsnn.cli.options import JsonOption, OwnArgsOption, OwnOption, StateOption
from nbsnn.cli.own import Own
from nbsnn.errors import ConfigError
from nbsnn.integer.network import IntegerNetwork
from nbsnn.integer.storage import program_from
from nbsnn.summary import summarize, system_facts
from nbsnn.tensorfile import Header, read_network
from nbsnn.wrappers import bare_state
from nbsnn.zoo import locate


@app.command()
def info(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A file written by nbsnn, or zoo:NAME.", metavar="CHECKPOINT")
    ] = None,
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    state: StateOption = None,
    system: Annotated[bool, typer.Option("--system", help="Describe this machine and the versions instead.")] = False,
    json_: JsonOption = False,
) -> None:
    """Show form, bits, layers and sizes of a checkpoint or, with --system, versions and devices of this machine.

    \b
    Examples:
      nbsnn info zoo:cifar10/resnet20-w2a2
      nbsnn info --system
    """
    if system == (checkpoint is not None or model is not None):
        raise ConfigError("info describes a checkpoint or --model, or with --system this machine; give one of the two")
    if system:
        facts = system_facts()
        if json_:
            console.show_json(facts)
        else:
            console.show_table("System", ("what", "value"), ((key, str(value)) for key, value in facts.items()))
        return
    own = Own(model, model_args, state)
    if checkpoint is None:
        network: nn.Module | None = (made := own.made())
        header, tensors, on_disk = describe(made), bare_state(made), 0
    else:
        header, tensors = read_network(checkpoint)
        if header["form"] == "integer":
            show_integer(checkpoint, header, tensors, json_=json_)
            return
        network, on_disk = own.network(spec_of(header)), locate(checkpoint).stat().st_size
    size, parameters, layers, exact = summarize(header, tensors, source=str(checkpoint), model=network)
    if json_:
        console.show_json(header | {"parameters": parameters, "bytes": size, "file_bytes": on_disk})
        return
    form = f"{header['form']} form" + (", packed" if header.get("packed") else "")
    spiking = header["spiking"]
    extra = f", {spiking['neuron']} neurons, {spiking['schedule']} schedule, T = {spiking['timesteps']}" if spiking else ""
    count = f"{'' if exact else 'at most '}{parameters:,} parameters"
    place = f", {on_disk / 1e6:.2f} MB on disk" if on_disk else ""
    console.say(f"{name_of(header)}, {form}{extra}: {count}, {size / 1e6:.2f} MB of tensors{place}")
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
    console.say(
        f"{name_of(header)}, integer form, T = {network.timesteps}: {size / 1e6:.2f} MB, hash {header['content_hash'][:12]}"
    )
    console.show_units("Units", network)
