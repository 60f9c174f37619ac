"""`nbsnn report`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from nbsnn import console
from nbsnn.cli.app import app
from nbsnn.cli.options import JsonOption, LimitOption, default_folder
from nbsnn.data import load_data
from nbsnn.files import write_text
from nbsnn.recipes import load_recipe
from nbsnn.report import images_looked_at
from nbsnn.report import report as measure_run


@app.command()
def report(
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="The recipe that the run was trained with.")],
    settings: Annotated[list[str], typer.Option("--set", "-s", help="key=value, as they were given to train.")] = [],  # noqa: B006
    run: Annotated[Path | None, typer.Option("--run", help="Folder of the run; runs/<recipe> unless given.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the figures here, as JSON.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="What the data is called; its name unless given.")] = None,
    notes: Annotated[list[str], typer.Option("--note", help="A remark kept beside the figures; repeatable.")] = [],  # noqa: B006
    limit: LimitOption = 0,
    spiking_limit: Annotated[int, typer.Option("--spiking-limit", min=0, help="Step only so many of them; 0 is all.")] = 0,
    fidelity_images: Annotated[int, typer.Option("--fidelity-images", min=1, help="Images compared neuron by neuron.")] = 200,
    json_: JsonOption = False,
) -> None:
    """Measure a finished run: every phase, neuron and schedule, with machine, versions, seed and recipe hash.

    Example: nbsnn report --recipe cifar10/resnet20:fast --set data.root=data --out resnet20.json
    """
    plan = load_recipe(recipe, settings)
    test = load_data(plan.data, size=plan.model.image_size).test.some(limit)
    stepped = spiking_limit or None
    with console.image_progress(images_looked_at(plan, len(test), stepped, fidelity_images), "measuring") as tell:
        figures = measure_run(
            plan, run or default_folder(recipe), test, label=label or plan.data.name, fidelity_images=fidelity_images,
            spiking_images=stepped, notes=notes, progress=tell,
        )  # fmt: skip
    if out:
        write_text(out, json.dumps(figures, indent=1) + "\n")
        console.note(f"wrote {out}")
    if json_:
        console.show_json(figures)
    else:
        console.show_report(figures)
