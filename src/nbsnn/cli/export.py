"""`nbsnn export`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from nbsnn import console
from nbsnn.cli.app import app
from nbsnn.cli.networks import example_for, load
from nbsnn.cli.options import Checkpoint, DataOption, DownloadOption, JsonOption, OwnArgsOption, OwnOption, RootOption
from nbsnn.cli.own import Own
from nbsnn.export import EXPORTERS, ExportOptions, check_files, check_profile, exporter_named, planned

_PROFILES = "; ".join(f"{name}: {', '.join(e.profiles)}" for name, e in EXPORTERS.items() if e.profiles) or "no format has any"


@app.command()
def export(
    checkpoint: Checkpoint,
    *,
    format_: Annotated[str, typer.Option("--format", "-f", metavar="NAME", help=f"{', '.join(EXPORTERS)}.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file; a format of several files puts the others beside it.")],
    profile: Annotated[str | None, typer.Option("--profile", help=f"How: {_PROFILES}.")] = None,
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    data: DataOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    json_: JsonOption = False,
) -> None:
    """Write a network in a format that other software or a chip reads.

    What the target cannot express is printed before anything is written. A quantized or spiking network is lowered where
    the format needs integers.

    \b
    Example:
      nbsnn export zoo:cifar10/resnet20-w2a2 --format json --out resnet20.json
    """
    exporter = exporter_named(format_)
    check_profile(exporter, profile)
    check_files(out, exporter, inputs=[checkpoint] if checkpoint else [], overwrite=overwrite)
    network, header = load(checkpoint, "cpu", Own(model, model_args))
    source = {**header, "source": Path(str(checkpoint)).name}
    options = ExportOptions(profile, origin=source)
    if isinstance(network, nn.Module):
        image, mean, std = example_for(header, network, data=data, root=root, download=download)
        options = replace(options, example=image, mean=mean, std=std)
    with console.doing(f"preparing {exporter.kind}"):
        plan = planned(out, network, exporter, options)
        limits = plan.limits()
    for line in (*plan.steps, *limits):
        console.note(line)
    with console.doing(f"writing {out}"):
        written = plan.write()
    if json_:
        files = [{"file": str(path), "bytes": size} for path, size in written.files.items()]
        console.show_json({"format": exporter.name, "profile": plan.options.profile, "files": files, "limits": list(limits),
                           **written.facts})  # fmt: skip
        return
    rows = [(str(path), f"{size:,}".replace(",", " ")) for path, size in written.files.items()]
    console.show_table(exporter.kind.partition(" ")[2], ("file", "bytes"), rows)
    for name, value in written.facts.items():
        console.say(f"{name.replace('_', ' ')}: {value:,}".replace(",", " ") if isinstance(value, int) else f"{name}: {value}")
