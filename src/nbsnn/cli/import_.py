"""`nbsnn import`."""

from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from nbsnn import console
from nbsnn.checkpoint import form_of, save_checkpoint
from nbsnn.cli.app import app
from nbsnn.cli.options import JsonOption, OverwriteOption
from nbsnn.errors import ConfigError, shown
from nbsnn.importers.nir import load_nir
from nbsnn.importers.onnx import load_onnx
from nbsnn.outputs import check_output, network_kind
from nbsnn.quant.layers import QuantReLU, WeightQuantizer
from nbsnn.spiking.neuron import IFNeuron

_FORMS = {".onnx": "quantized", ".nir": "spiking"}


@app.command("import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="An .onnx file with QuantizeLinear and DequantizeLinear, or a .nir file of IF neurons.", metavar="FILE"
        ),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Write the network to this file, .safetensors.")],
    image_shape: Annotated[
        str | None, typer.Option("--image-shape", metavar="C,H,W", help="ONNX: of an image, if the file does not say it.")
    ] = None,
    timesteps: Annotated[
        int | None, typer.Option("--timesteps", "-T", help="NIR: steps of an image, 2^b - 1, if the file does not say it.")
    ] = None,
    reset: Annotated[
        str | None, typer.Option("--reset", metavar="subtract", help="NIR: the reset that the network is made for.")
    ] = None,
    charge: Annotated[
        float | None, typer.Option("--charge", metavar="0.5", help="NIR: what neurons begin with, of a threshold.")
    ] = None,
    overwrite: OverwriteOption = False,
    json_: JsonOption = False,
) -> None:
    """Read a network of other software into a checkpoint: a quantized one from ONNX, a spiking one from NIR.

    The other verbs take the checkpoint without --model: it describes the network completely. What it does differently from
    the file is printed.

    \b
    Examples:
      nbsnn import brevitas.onnx --out quantized.safetensors
      nbsnn import neurons.nir --timesteps 7 --charge 0.5 --out s.safetensors
    """
    kind = file.suffix.lower()
    if kind not in _FORMS:
        raise ConfigError(f"{file}: files that end with {' or '.join(_FORMS)} are read; name it after what it is")
    check_output(out, network_kind(_FORMS[kind]), inputs=[file], overwrite=overwrite)
    options: dict[str, dict[str, object]] = {
        ".onnx": {"--image-shape": image_shape},
        ".nir": {"--timesteps": timesteps, "--reset": reset, "--charge": charge},
    }
    for other in options.keys() - {kind}:
        if unread := [option for option, value in options[other].items() if value is not None]:
            raise ConfigError(f"{unread[0]}: is for {other} files; leave it out")
    with console.doing(f"reading {file}"):
        network: nn.Module = (
            load_onnx(file, image_shape=_shape(image_shape))
            if kind == ".onnx"
            else load_nir(file, timesteps=timesteps, reset=reset, charge=charge)
        )
    save_checkpoint(out, network)
    weights = [m.weight_bits for m in network.modules() if isinstance(m, WeightQuantizer)]
    acts = [m.bits for m in network.modules() if isinstance(m, (QuantReLU, IFNeuron))]
    if json_:
        console.show_json({"file": str(out), "form": form_of(network), "weight_bits": weights, "act_bits": acts})
        return
    console.say(f"{out}: {len(weights)} quantized layers and {len(acts)} activations, T = {2 ** max(acts) - 1}")


def _shape(given: str | None) -> list[int] | None:
    """The sizes of an image, from C,H,W."""
    if given is None:
        return None
    shape = [int(side) if side.strip().isdecimal() else 0 for side in given.split(",")]
    if not 1 <= len(shape) <= 3 or not all(0 < side < 2**31 for side in shape):
        raise ConfigError(f"--image-shape {shown(given)}: give the sizes of one image, such as 3,32,32")
    return shape
