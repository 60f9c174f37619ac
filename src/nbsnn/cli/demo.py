"""`nbsnn demo`."""

from pathlib import Path
from typing import Annotated

import typer

from nbsnn import console, pipeline
from nbsnn.checkpoint import load_checkpoint
from nbsnn.cli.app import app
from nbsnn.cli.options import JsonOption, LimitOption, SeedOption, SetOption, check_folder
from nbsnn.data import load_data
from nbsnn.data.images import Batches
from nbsnn.data.sets.sample import load_sample
from nbsnn.evaluation.accuracy import evaluate
from nbsnn.evaluation.comparison import Comparison, compare
from nbsnn.recipes import load_recipe
from nbsnn.spiking.schedules import valid_pairs
from nbsnn.training.options import TrainOptions
from nbsnn.training_console import TrainingConsole
from nbsnn.zoo import PREFIX, list_zoo

_OWN_FOLDER = Path("runs/demo")  # trained from the start each time


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")] = _OWN_FOLDER,
    seed: SeedOption = 0,
    settings: SetOption = [],  # noqa: B006
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train from the start, and replace results in --out.")] = False,
    limit: LimitOption = 0,
    json_: JsonOption = False,
) -> None:
    """Run the whole method on handwritten digits: four phases of training, then every neuron and schedule, in one table.

    It takes a few minutes, and also runs the bundled networks on real images.

    \b
    Examples:
      nbsnn demo
      nbsnn demo --out runs/short --set phase.all.epochs=1
    """
    plan = load_recipe("digits/resnet20", [*settings, f"seed={seed}"])
    check_folder(out)
    console.note(f"ResNet-20 on 8×8 digits: float, then 4, 3 and 2 bits → {out}")
    splits = load_data(plan.data)
    how = TrainOptions(overwrite=overwrite or out == _OWN_FOLDER)
    with TrainingConsole() as observer:
        phases = list(pipeline.train(plan, out, how, splits=splits, observer=observer))
    test = splits.test.some(limit)
    float_top1 = next((p.best.top1 for p in phases if p.bits == 32), None)
    results: list[Comparison] = []
    quantized = [p for p in phases if p.bits != 32]
    with console.image_progress(len(quantized) * len(valid_pairs()) * 2 * len(test), "converting") as tell:
        for phase in quantized:
            model = load_checkpoint(phase.fit.best)
            results += compare(model, test, fidelity_images=len(test), progress=tell)
    if json_:
        console.show_json({"float_top1": float_top1, "results": [r.to_dict() for r in results]})
        return
    console.show_comparisons(f"Digits, {len(test)} test images, ResNet-20", results, float_top1)
    console.say(
        "quantized, spiking: top-1 in %.  off %: share of neurons whose spike count differs from the quantized activation.\n"
        "fixed stops after T steps, as published; settle and barrier are exact: each count equals the quantized activation.\n"
        "They take more steps. Exact does not mean more accurate: on few images, wrong counts may score higher by chance."
    )
    _show_zoo()


def _show_zoo() -> None:
    sample = load_sample().test
    rows = []
    with console.doing("running the bundled networks"):
        for name in list_zoo():
            network = load_checkpoint(PREFIX + name)
            integer = pipeline.integer_form(network, sample)
            reports = [evaluate(form, Batches(sample, 100)) for form in (network, integer)]
            rows.append((PREFIX + name, *(f"{r.top1:.2f}" for r in reports), *(f"{r.images_per_second:.0f}" for r in reports)))
    columns = ("network", "quantized", "in integers", "images/s", "images/s, integers")
    console.show_table(f"Bundled networks, {len(sample)} test images of CIFAR-10 (JPEG q75), top-1 in %", columns, rows)
