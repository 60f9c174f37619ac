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
    OutputOption,
    OverwriteOption,
    OwnArgsOption,
    OwnOption,
    RootOption,
    SplitOption,
    StateOption,
    between,
    which_output,
)
from nbsnn.cli.own import Own
from nbsnn.evaluation.fidelity import measure_integer_fidelity
from nbsnn.export import export
from nbsnn.export.integer import EXPORTER
from nbsnn.outputs import check_output


@app.command()
def lower(
    checkpoint: Checkpoint = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Write the integer network to this file, .safetensors.")],
    float_weight_bits: Annotated[
        int, typer.Option("--float-weight-bits", help="8 or 16, for weights that are not quantized.")
    ] = 8,
    membrane_bits: Annotated[
        int, typer.Option("--membrane-bits", help="32 or 64; counts with 64 are those of the quantized network in float64.")
    ] = 32,
    fidelity_images: Annotated[
        int, typer.Option("--fidelity-images", callback=between(0), help="Images whose counts are compared, 0 for none.")
    ] = 100,
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    state: StateOption = None,
    data: DataOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    split: SplitOption = "test",
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    json_: JsonOption = False,
) -> None:
    """Lower a quantized checkpoint to an integer network, which gives the same bits on every machine.

    It is what a chip would run: integer weights, fixed-point multipliers, thresholds of 2^F.

    \b
    Example:
      nbsnn lower runs/r20/2bit/best.safetensors --out r20-int.safetensors
    """
    check_output(out, EXPORTER.kind, inputs=[checkpoint] if checkpoint else [], overwrite=overwrite)
    network, header = load(checkpoint, "cpu", Own(model, model_args, state))
    quantized = only_quantized(network, checkpoint, "lower")
    which = which_output(output)
    images = images_for(
        header, split, fidelity_images or 1, data=data, root=root, download=download, network=quantized, output=which
    )
    with console.doing("lowering to an integer network"):
        program = pipeline.integer_form(quantized, images, float_weight_bits=float_weight_bits, membrane_bits=membrane_bits)
    export(out, program, EXPORTER.name, origin={**header, "source": Path(str(checkpoint)).name})
    console.note(f"wrote {out}")
    fidelity = None
    if fidelity_images:
        with console.image_progress(len(images), "comparing counts") as tell:
            fidelity = measure_integer_fidelity(
                quantized, program, images.normalized(), labels=images.labels, output=which,
                progress=lambda count: tell("", count),
            )  # fmt: skip
    if json_:
        rows = [row.to_dict() for row in program.report()]
        console.show_json({"file": str(out), "timesteps": program.timesteps, "units": rows,
                           "notes": list(program.program.notes), "fidelity": fidelity and fidelity.to_dict()})  # fmt: skip
        return
    console.show_units(str(out), program)
    if fidelity:
        console.say(
            f"counts that differ from the simulated quantized network: {fidelity.off:.4f} % on {fidelity.images} images; "
            f"same class for {fidelity.agreement:.1f} %"
        )
