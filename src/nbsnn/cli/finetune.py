"""`nbsnn finetune`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from nbsnn import console, pipeline
from nbsnn.checkpoint import recipe_of, save_checkpoint
from nbsnn.cli.app import app
from nbsnn.cli.networks import check_t, chosen_data, load, load_splits, only_quantized
from nbsnn.cli.options import (
    BatchOption,
    Checkpoint,
    DataOption,
    DeviceOption,
    DownloadOption,
    JsonOption,
    LimitOption,
    OverwriteOption,
    OwnArgsOption,
    OwnOption,
    RootOption,
    SeedOption,
    StateOption,
    TimestepsOption,
    between,
)
from nbsnn.cli.own import Own
from nbsnn.data import choices, data_set
from nbsnn.data.images import Splits
from nbsnn.errors import ConfigError
from nbsnn.outputs import check_output, network_kind
from nbsnn.settings import typed
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.training.finetune_spec import START, Change, FinetuneSpec, check_source

_HELD_OUT = 1000  # default number of images: each change is evaluated on them


@app.command("finetune")
def finetune_(
    checkpoint: Checkpoint = None,
    method: Annotated[str, typer.Option("--method", help="layerwise (published), end-to-end or calibrate.")] = "layerwise",
    epochs: Annotated[int, typer.Option("--epochs", "-n", help="Epochs per layer; end to end, in all.")] = 1,
    neuron: Annotated[str, typer.Option("--neuron", help="signed or unsigned.")] = "signed",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the fine-tuned spiking network here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Keep every change, even if accuracy does not rise.")] = False,
    calibrate_first: Annotated[
        bool, typer.Option("--calibrate-first", help="End to end: start from the calibrated network.")
    ] = False,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate; 0 is the method's default.")] = 0.0,
    weights: Annotated[
        bool | None,
        typer.Option("--weights/--no-weights", help="Train weights too, or norms and biases only (default of end-to-end)."),
    ] = None,
    distillation: Annotated[
        float | None,
        typer.Option("--distillation", help="End to end: the teacher's share of the loss, 0.5; labels have the rest."),
    ] = None,
    batch_size: BatchOption = 50,
    seed: SeedOption = 0,
    limit_train: Annotated[
        int, typer.Option("--limit-train", callback=between(0), help="Train on the first N images only; 0 is all.")
    ] = 0,
    held_out: Annotated[
        int, typer.Option("--held-out", callback=between(1), help="Training images held out to evaluate changes.")
    ] = _HELD_OUT,
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    state: StateOption = None,
    data: DataOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    limit: LimitOption = 0,
    device: DeviceOption = "auto",
    timesteps: TimestepsOption = None,
    overwrite: OverwriteOption = False,
    json_: JsonOption = False,
) -> None:
    """Fine-tune a quantized checkpoint for the schedule "fixed", which stops after T = 2^b - 1 steps.

    A change is kept only if spiking accuracy on held-out training images rises; --out is written after each kept change. The
    result is a spiking network, which cannot be used as a quantized one. Packed networks, such as those of the zoo, have fixed
        weights: calibrate them, or train their norms and biases end to end.

    \b
    Examples:
      nbsnn finetune zoo:cifar10/resnet20-w2a2 --method calibrate --root data
      nbsnn finetune runs/r20/2bit/best.safetensors --out r20-fixed.safetensors
    """
    wanted = {"method": method, "epochs": epochs, "neuron": neuron, "force": force, "calibrate_first": calibrate_first,
              "lr": lr, "weights": weights, "distillation": distillation, "batch_size": batch_size, "seed": seed}  # fmt: skip
    spec: FinetuneSpec = typed(wanted, FinetuneSpec)
    if out:  # an error now, not after an hour
        check_output(out, network_kind("spiking"), inputs=[checkpoint] if checkpoint else [], overwrite=overwrite)
    network, header = load(checkpoint, device, Own(model, model_args, state))
    quantized = only_quantized(network, checkpoint, "finetune")
    check_t(quantized, timesteps)
    check_source(quantized, spec)  # before images are loaded
    source = chosen_data(header, data=data, root=root, download=download)
    if not data_set(source.name).trains:
        others = choices(lambda data: data.trains)
        raise ConfigError(f"--data {source.name}: these are test images; fine-tune on the training images of {others}")
    spec = replace(spec, augment=source.augment)
    if source.validation == 0:  # the test images chose the best epoch; they are not used here
        source = replace(source, validation=data_set(source.name).validation or held_out)
    splits = load_splits(header, source, quantized)
    splits = Splits(splits.train.some(limit_train), splits.validation.some(held_out), splits.test.some(limit))

    def save(network: SpikingNetwork, metrics: dict[str, Any]) -> None:
        if out:
            save_checkpoint(out, network, recipe=recipe_of(header), seed=seed, metrics=metrics)

    def on_change(change: Change, network: SpikingNetwork, metrics: dict[str, Any]) -> None:
        console.note(console.change_line(change))
        if change.kept and change.name != START:  # an interrupted run keeps the changes so far
            save(network, metrics | {"last_change": change.name})

    run = pipeline.finetune_and_test(
        quantized, splits, spec, source=str(checkpoint), progress=console.image_progress, on_change=on_change
    )
    save(run.result.spiking, run.metrics)
    if out:
        console.note(f"wrote {out}")
    if json_:
        console.show_json(run.figures)
    else:
        console.show_finetuning(f"{checkpoint}, {method}", run.result, len(splits.validation), run.tested)
