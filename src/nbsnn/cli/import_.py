"""`nbsnn import`."""

from pathlib import Path
from typing import Annotated

import typer

from nbsnn import console
from nbsnn.checkpoint import form_of, save_checkpoint
from nbsnn.cli.app import app
from nbsnn.cli.options import JsonOption, OverwriteOption
from nbsnn.errors import ConfigError, shown
from nbsnn.importers.onnx import load_onnx
from nbsnn.outputs import check_output, network_kind
from nbsnn.quant.layers import QuantReLU, WeightQuantizer


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="An .onnx file with QuantizeLinear and DequantizeLinear.", metavar="FILE")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Write the quantized network to this file, .safetensors.")],
    image_shape: Annotated[
        str | None, typer.Option("--image-shape", metavar="C,H,W", help="Of an image, if the file does not say it.")
    ] = None,
    overwrite: OverwriteOption = False,
    json_: JsonOption = False,
) -> None:
    """Read a quantized network of other software, such as Brevitas or onnxruntime, into a checkpoint.

    The other verbs take the checkpoint without --model: it describes the network completely. What it does differently from
    the file is printed.

    \b
    Example:
      nbsnn import brevitas.onnx --out quantized.safetensors
    """
    check_output(out, network_kind("quantized"), inputs=[file], overwrite=overwrite)
    shape = None
    if image_shape is not None:
        shape = [int(side) if side.strip().isdecimal() else 0 for side in image_shape.split(",")]
        if not 1 <= len(shape) <= 3 or not all(0 < side < 2**31 for side in shape):
            raise ConfigError(f"--image-shape {shown(image_shape)}: give the sizes of one image, such as 3,32,32")
    with console.doing(f"reading {file}"):
        network = load_onnx(file, image_shape=shape)
    save_checkpoint(out, network)
    weights = [m.weight_bits for m in network.modules() if isinstance(m, WeightQuantizer)]
    acts = [m.bits for m in network.modules() if isinstance(m, QuantReLU)]
    if json_:
        console.show_json({"file": str(out), "form": form_of(network), "weight_bits": weights, "act_bits": acts})
        return
    console.say(f"{out}: {len(weights)} quantized layers and {len(acts)} activations, T = {2 ** max(acts) - 1}")
