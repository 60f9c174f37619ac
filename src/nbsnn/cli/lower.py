"""`nbsnn lower`."""

from pathlib import Path
from typing import Annotated

import typer

from nbsnn import console, pipeline
from nbsnn.cli.app import app
from nbsnn.cli.networks import images_for, load, only_quantized
from nbsnn.cli.options import (
    Checkpoint,
    DataOption,
    DownloadOption,
    JsonOption,
    OverwriteOption,
    RootOption,
    SplitOption,
    between,
)
from nbsnn.evaluation.fidelity import measure_integer_fidelity
from nbsnn.export import export
from nbsnn.export.integer import EXPORTER
from nbsnn.outputs import check_output
from nbsnn.tensorfile import Header


@app.command()
def lower(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("--out", "-o", help="Write the integer network to this file, .safetensors.")],
    float_weight_bits: Annotated[
        int, typer.Option("--float-weight-bits", help="8 or 16, for weights that are not quantized.")
    ] = 8,
    fidelity_images: Annotated[
        int, typer.Option("--fidelity-images", callback=between(0), help="Images whose counts are compared, 0 for none.")
    ] = 100,
    data: DataOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    split: SplitOption = "test",
    overwrite: OverwriteOption = False,
    json_: JsonOption = False,
) -> None:
    """Lower a quantized checkpoint to an integer network, which gives the same bits on every machine.

    It is what a chip would run: integer weights, fixed-point multipliers, thresholds of 2^F.

    \b
    Example:
      nbsnn lower runs/r20/2bit/best.safetensors --out r20-int.safetensors
    """
    check_output(out, EXPORTER.kind, inputs=[checkpoint], overwrite=overwrite)
    model, header = load(checkpoint, "cpu")
    quantized = only_quantized(model, checkpoint, "lower")
    images = images_for(header, split, fidelity_images or 1, data=data, root=root, download=download)
    with console.doing("lowering to an integer network"):
        network = pipeline.integer_form(quantized, images, float_weight_bits=float_weight_bits)
    export(out, network, EXPORTER.name, origin=origin_of(header, checkpoint))
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
    console.show_units(str(out), network)
    if fidelity:
        console.say(
            f"counts that differ from the simulated quantized network: {fidelity.off:.4f} % on {fidelity.images} images; "
            f"same class for {fidelity.agreement:.1f} %"
        )


def origin_of(header: Header, checkpoint: Path) -> dict[str, object]:
    """The source of an integer network, for its file."""
    return {"model": header["model"], "recipe": header["recipe"], "metrics": header["metrics"], "source": checkpoint.name}
