"""`nbsnn quantize`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from nbsnn import console
from nbsnn.checkpoint import form_of, save_checkpoint
from nbsnn.cli.app import app
from nbsnn.cli.networks import chosen_data, load, load_splits, recipe_for
from nbsnn.cli.options import (
    DataOption,
    DeviceOption,
    DownloadOption,
    JsonOption,
    LimitOption,
    OutputOption,
    OverwriteOption,
    OwnArgsOption,
    OwnOption,
    RootOption,
    StateOption,
    between,
    which_output,
)
from nbsnn.cli.own import Own
from nbsnn.data.images import LabelledImages, evaluation_batches
from nbsnn.errors import ConfigError
from nbsnn.evaluation.accuracy import evaluate
from nbsnn.integer.network import IntegerNetwork
from nbsnn.outputs import check_output, network_kind
from nbsnn.quant.quantize import quantize as quantize_network
from nbsnn.recipe import QuantSpec
from nbsnn.settings import typed
from nbsnn.training.matching import with_classes


@app.command()
def quantize(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A float checkpoint written by nbsnn.", metavar="CHECKPOINT")
    ] = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Write the quantized checkpoint here.")],
    weight_bits: Annotated[int, typer.Option("--weight-bits", "-w", help="2 to 8; 32 leaves weights in float.")] = 4,
    act_bits: Annotated[int, typer.Option("--act-bits", "-a", help="1 to 8; T = 2^bits - 1 time steps.")] = 4,
    weight_format: Annotated[
        str | None, typer.Option("--weight-format", help="apot (2 to 5 bits) or uniform (2 to 8); by default by the bits.")
    ] = None,
    scale: Annotated[
        str | None, typer.Option("--scale", help="Of weights: tensor, or channel, for each output; by default by the format.")
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="calibrate (thresholds, seconds), or reconstruct (weights and biases too, minutes).")
    ] = "calibrate",
    skip: Annotated[list[str], typer.Option("--skip", help="Layer, or pattern, to leave in float; repeatable.")] = [],  # noqa: B006
    images: Annotated[
        int, typer.Option("--images", callback=between(1, 4096), help="Training images to measure thresholds on.")
    ] = 512,
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    state: StateOption = None,
    data: DataOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    limit: LimitOption = 0,
    device: DeviceOption = "auto",
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    json_: JsonOption = False,
) -> None:
    """Quantize a float network without training it, and measure what that costs on the test images.

    Labels of the training images are not used. For fewer bits, or more accuracy, train: nbsnn train --init.

    \b
    Examples:
      nbsnn quantize runs/r20/32bit/best.safetensors -o q.safetensors
      nbsnn quantize float.safetensors --method reconstruct -o q.safetensors
      nbsnn quantize --model model:net --data recipe.toml -o q.safetensors
    """
    check_output(out, network_kind("quantized"), inputs=[path for path in (checkpoint, state) if path], overwrite=overwrite)
    wanted = {"weight_bits": weight_bits, "act_bits": act_bits, "skip": skip, "weight_format": weight_format, "scale": scale}
    spec: QuantSpec = typed(wanted, QuantSpec)
    network, header = load(checkpoint, device, Own(model, model_args, state))
    if isinstance(network, IntegerNetwork) or form_of(network) != "float":
        raise ConfigError(f"{checkpoint} is quantized already; for fewer bits, train it: nbsnn train --init {checkpoint}")
    which = which_output(output)
    splits = load_splits(header, chosen_data(header, data=data, root=root, download=download), network, output=which)
    few = evenly_spaced(splits.train, images)
    with console.layer_progress(f"quantizing, with {len(few)} images") as tell:
        quantized = quantize_network(network, spec, images=few, method=method, progress=tell)  # type: ignore[arg-type]
    summary: Any = quantized.summary
    test = splits.test.some(limit)
    top1 = {}
    with console.image_progress(2 * len(test), "testing") as tell:
        for form, net in (("float", network), ("quantized", quantized)):
            batches = evaluation_batches(test.to(next(net.parameters()).device))
            tell_form = partial(tell, form)
            top1[form] = evaluate(net, batches, output=which, progress=tell_form).top1
    recipe = recipe_for(header, data)
    metrics = {"top1": top1["quantized"], "float_top1": top1["float"], "calibration_images": len(few)}
    save_checkpoint(out, quantized, recipe=recipe and with_classes(recipe, splits.train, []), metrics=metrics)
    console.note(str(summary))
    console.note(f"wrote {out}")
    if json_:
        console.show_json({"checkpoint": str(out), "weight_bits": weight_bits, "act_bits": act_bits, **metrics,
                           "summary": summary.to_dict()})  # fmt: skip
        return
    row = (str(weight_bits), str(act_bits), f"{top1['float']:.2f}", f"{top1['quantized']:.2f}")
    columns = ("weight bits", "act bits", "float top-1 %", "quantized top-1 %")
    console.show_table(f"{out}, {len(test)} test images", columns, [row])


def evenly_spaced(train: LabelledImages, count: int) -> torch.Tensor:
    """Up to `count` normalized images of all classes."""
    chosen = torch.arange(min(count, len(train))) * len(train) // min(count, len(train))
    return train.normalized(train.pixels(chosen))
