"""`nbsnn report`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from nbsnn import console
from nbsnn.cli.app import app
from nbsnn.cli.options import (
    ComparedOption,
    DownloadOption,
    JsonOption,
    LimitOption,
    OverwriteOption,
    OwnArgsOption,
    OwnOption,
    RecipeOption,
    RootOption,
    SetOption,
    between,
    default_folder,
    with_data,
)
from nbsnn.cli.own import Own, run_network
from nbsnn.data import load_data
from nbsnn.figures import images_to_measure, measure_run
from nbsnn.files import write_text
from nbsnn.outputs import FIGURES, check_output
from nbsnn.recipes import load_recipe


@app.command()
def report(
    recipe: RecipeOption,
    settings: SetOption = [],  # noqa: B006
    run: Annotated[Path | None, typer.Option("--run", help="Folder of the run; by default runs/<recipe>.")] = None,
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the figures to this file, as JSON.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="Name of the data in the report.")] = None,
    notes: Annotated[list[str], typer.Option("--note", help="A remark stored with the figures; repeatable.")] = [],  # noqa: B006
    limit: LimitOption = 0,
    spiking_limit: Annotated[
        int, typer.Option("--spiking-limit", callback=between(0), help="Run spikes on the first N of them only; 0 is all.")
    ] = 0,
    fidelity_images: ComparedOption = 200,
    overwrite: OverwriteOption = False,
    json_: JsonOption = False,
) -> None:
    """Measure a finished run: every phase, neuron and schedule, with machine, versions, seed and recipe hash.

    Give the recipe and settings that the run was trained with.

    \b
    Example:
      nbsnn report -r cifar10/resnet20:fast --run runs/r20 --out resnet20.json
    """
    if out:
        check_output(out, FIGURES, overwrite=overwrite)
    plan, network = run_network(load_recipe(recipe, with_data(settings, root, download)), Own(model, model_args))
    with console.download_progress() as progress:
        test = load_data(plan.data, size=plan.model.image_size, progress=progress).test.some(limit)
    stepped = spiking_limit or None
    with console.image_progress(images_to_measure(plan, len(test), stepped, fidelity_images), "measuring") as tell:
        figures = measure_run(
            plan, run or default_folder(recipe), test, label=label or plan.data.name, fidelity_images=fidelity_images,
            spiking_images=stepped, notes=notes, model=network, progress=tell,
        )  # fmt: skip
    if out:
        write_text(out, json.dumps(figures, indent=1) + "\n")
        console.note(f"wrote {out}")
    if json_:
        console.show_json(figures)
    else:
        console.show_figures(figures)
