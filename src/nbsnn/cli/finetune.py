"""`nbsnn finetune`."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from nbsnn import console
from nbsnn.checkpoint import recipe_of, save_checkpoint
from nbsnn.cli.app import app
from nbsnn.cli.networks import check_t, data_spec, load, load_splits, only_quantized
from nbsnn.cli.options import (
    BatchOption,
    Checkpoint,
    DataOption,
    DeviceOption,
    DownloadOption,
    JsonOption,
    LimitOption,
    OverwriteOption,
    RootOption,
    SeedOption,
    TimestepsOption,
    between,
)
from nbsnn.data import choices, data_set
from nbsnn.errors import ConfigError
from nbsnn.evaluation.comparison import compare_finetuned
from nbsnn.outputs import check_output, network_kind
from nbsnn.settings import typed
from nbsnn.spiking.network import SpikingNetwork
from nbsnn.tensorfile import Header
from nbsnn.training.finetune import finetune, finetuned_metrics, images_to_see
from nbsnn.training.finetune_spec import START, Change, FinetuneSpec, check_source

_HELD_OUT = 1000  # images unless told otherwise: each change is judged on them


@dataclass(frozen=True)
class _Output:
    """The file named with --out, if any; an interrupted run leaves there what was kept until then."""

    path: Path | None
    source: Header
    seed: int
    known: dict[str, Any]  # what is known of the run before it ends, for `finetuned_metrics`

    def save(self, network: SpikingNetwork, metrics: dict[str, Any]) -> None:
        if self.path:
            save_checkpoint(self.path, network, recipe=recipe_of(self.source), seed=self.seed, metrics=metrics)

    def on_change(self, change: Change, network: SpikingNetwork) -> None:
        console.note(console.change_line(change))
        if change.kept and change.name != START:
            metrics = finetuned_metrics(self.known | {"test": None})
            self.save(network, metrics | {"held_out_top1": change.top1, "last_change": change.name})


@app.command("finetune")
def finetune_(
    checkpoint: Checkpoint,
    method: Annotated[str, typer.Option("--method", help="layerwise (published), end-to-end or calibrate.")] = "layerwise",
    epochs: Annotated[int, typer.Option("--epochs", "-n", help="Epochs per layer; end to end, in all.")] = 1,
    neuron: Annotated[str, typer.Option("--neuron", help="signed or unsigned.")] = "signed",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the fine-tuned spiking network here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Keep every change, whether accuracy rises or not.")] = False,
    calibrate_first: Annotated[
        bool, typer.Option("--calibrate-first", help="End to end: start from the calibrated network.")
    ] = False,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate; 0 is the method's own.")] = 0.0,
    weights: Annotated[
        bool | None,
        typer.Option("--weights/--no-weights", help="Train weights too, or norms and biases alone (end-to-end's own)."),
    ] = None,
    distillation: Annotated[
        float | None,
        typer.Option("--distillation", help="End to end: the teacher's share of the loss, 0.5; labels have the rest."),
    ] = None,
    batch_size: BatchOption = 50,
    seed: SeedOption = 0,
    limit_train: Annotated[
        int, typer.Option("--limit-train", callback=between(0), help="Train on the first so many images; 0 is all.")
    ] = 0,
    held_out: Annotated[
        int, typer.Option("--held-out", callback=between(1), help="Training images that are held out, to judge changes by.")
    ] = _HELD_OUT,
    data: DataOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    limit: LimitOption = 0,
    device: DeviceOption = "auto",
    timesteps: TimestepsOption = None,
    overwrite: OverwriteOption = False,
    json_: JsonOption = False,
) -> None:
    """Fine-tune a quantized checkpoint for spikes under the schedule "fixed": T = 2^b - 1 steps and stop.

    A change is kept only if spiking accuracy on held-out training images rises; --out is written after each kept change. The
    result is a spiking network, which cannot be read as a quantized one. A packed network, such as those of the zoo, has fixed
    weights: calibrate it, or train its norms and biases end to end.

    \b
    Examples:
      nbsnn finetune zoo:cifar10/resnet20-w2a2 --method calibrate --root data
      nbsnn finetune runs/r20/2bit/best.safetensors --out r20-fixed.safetensors
    """
    wanted = {"method": method, "epochs": epochs, "neuron": neuron, "force": force, "calibrate_first": calibrate_first,
              "lr": lr, "weights": weights, "distillation": distillation, "batch_size": batch_size, "seed": seed}  # fmt: skip
    spec: FinetuneSpec = typed(wanted, FinetuneSpec)
    if out:  # found out now, not after an hour
        check_output(out, network_kind("spiking"), inputs=[checkpoint], overwrite=overwrite)
    network, header = load(checkpoint, device)
    model = only_quantized(network, checkpoint, "finetune")
    check_t(model, timesteps)
    check_source(model, spec)  # before images are looked for
    source = data_spec(header, data=data, root=root, download=download)
    if not data_set(source.name).trains:
        others = choices(lambda data: data.trains)
        raise ConfigError(f"--data {source.name}: these are test images; fine-tune on the training images of {others}")
    spec = replace(spec, augment=source.augment)
    if source.validation == 0:  # the test images chose the best epoch; they do not judge here
        source = replace(source, validation=data_set(source.name).validation or held_out)
    splits = load_splits(header, source)
    train, judge = splits.train.some(limit_train), splits.validation.some(held_out)
    known = {
        "checkpoint": str(checkpoint),
        "settings": spec.to_dict(),
        "train_images": len(train),
        "held_out_images": len(judge),
    }
    output = _Output(out, header, seed, known)
    with console.image_progress(images_to_see(model, train, judge, spec), f"{method} fine-tuning") as tell:
        result = finetune(model, train, judge, spec, progress=tell, on_change=output.on_change)
    test = splits.test.some(limit)
    with console.image_progress(3 * len(test), "testing") as tell:
        tested = compare_finetuned(model, result.spiking, test, progress=tell)
    figures = known | {"held_out": result.to_dict(), "test": asdict(tested)}
    output.save(result.spiking, finetuned_metrics(figures))
    if out:
        console.note(f"wrote {out}")
    if json_:
        console.show_json(figures)
    else:
        console.show_finetuning(f"{checkpoint}, {method}", result, len(judge), tested)
