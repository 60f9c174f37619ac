"""`nbsnn pack`."""

from pathlib import Path
from typing import Annotated

import typer

from nbsnn import console
from nbsnn.cli.app import app
from nbsnn.cli.networks import load, only_quantized
from nbsnn.cli.options import JsonOption, OverwriteOption, OwnArgsOption, OwnOption
from nbsnn.cli.own import Own
from nbsnn.export import export
from nbsnn.export.packed import EXPORTER
from nbsnn.outputs import check_output
from nbsnn.zoo import locate


@app.command()
def pack(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="A quantized checkpoint; bundled networks are packed already.", metavar="CHECKPOINT"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The packed file, .safetensors.")],
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    overwrite: OverwriteOption = False,
    json_: JsonOption = False,
) -> None:
    """Write a quantized checkpoint as a small file: weights as b-bit codes, with provenance and a hash.

    Its logits are equal bit for bit. eval, convert, lower, bench, classify, finetune and info take it like a checkpoint;
    fine-tuning does not change its weights.

    \b
    Example:
      nbsnn pack runs/r20/2bit/best.safetensors --out resnet20-w2a2.safetensors
    """
    check_output(out, EXPORTER.kind, inputs=[checkpoint], overwrite=overwrite)
    network, header = load(checkpoint, "cpu", Own(model, model_args))
    before = locate(checkpoint).stat().st_size
    size = export(out, only_quantized(network, checkpoint, "pack"), EXPORTER.name, origin=header)
    if json_:
        console.show_json({"packed": str(out), "bytes": size, "checkpoint_bytes": before})
        return
    console.say(f"{out}: {size / 1e3:.0f} kB, {before / size:.1f} times smaller than the checkpoint")
