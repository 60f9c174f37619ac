"""`nbsnn report`."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from nbsnn import console
from nbsnn.cli.app import app
from nbsnn.cli.networks import check_named, chosen_data, images_for
from nbsnn.cli.options import (
    Checkpoint,
    ComparedOption,
    DataOption,
    DownloadOption,
    JsonOption,
    LimitOption,
    OverwriteOption,
    OwnArgsOption,
    OwnOption,
    RootOption,
    SetOption,
    SplitOption,
    StateOption,
    between,
    default_folder,
    with_data,
)
from nbsnn.cli.own import Own, run_network
from nbsnn.data import load_data
from nbsnn.data.images import LabelledImages
from nbsnn.errors import ConfigError, NbsnnError
from nbsnn.figures import images_to_measure, measure_run
from nbsnn.files import write_text
from nbsnn.outputs import FIGURES, PAGE_SUFFIXES, REPORT, check_output, check_suffix
from nbsnn.recipes import load_recipe
from nbsnn.report.limits import ReportLimits
from nbsnn.report.measure import measure_report
from nbsnn.report.page import check_packages, page_of
from nbsnn.report.subjects import Subject, header_at, subject_of
from nbsnn.report.words import accuracy_rows
from nbsnn.spiking.schedules import SCHEDULES, schedule_named, valid_pairs


@app.command()
def report(
    checkpoint: Checkpoint = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="Measure a finished run of this recipe: a name, or a TOML file.")
    ] = None,
    settings: SetOption = [],  # noqa: B006
    run: Annotated[Path | None, typer.Option("--run", help="Folder of the run; by default runs/<recipe>.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a report to open in a browser to this file.")] = None,
    schedules: Annotated[
        list[str], typer.Option("--schedule", help="Of the HTML report: fixed, settle or barrier; repeatable; by default all.")
    ] = [],  # noqa: B006
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    state: StateOption = None,
    float_: Annotated[
        Path | None, typer.Option("--float", metavar="FILE", help="The trained float network, to show its accuracy beside.")
    ] = None,
    data: DataOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    split: SplitOption = "test",
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
    """Report on a run folder, a checkpoint or an own network, as an HTML file.

    It shows accuracies, learning curves, layers, spikes, weights, energy and speed, and what is missing; it takes about a
    minute. With --recipe and without --html it measures every phase of a finished run on all images, for a table.

    \b
    Examples:
      nbsnn report zoo:cifar10/resnet20-w2a2 --data sample --html r.html
      nbsnn report runs/r20 --html r20.html
      nbsnn report -r cifar10/resnet20:fast --run runs/r20 --out resnet20.json
    """
    if out:
        check_output(out, FIGURES if recipe and not html else REPORT, overwrite=overwrite)
    if html:
        check_suffix(html, REPORT, *PAGE_SUFFIXES)
        check_output(html, REPORT, inputs=[checkpoint], overwrite=overwrite)
        check_packages()
    own = Own(model, model_args, state)
    stepped = spiking_limit or None
    if float_ and recipe and not html:
        raise ConfigError(f"--float {float_}: the run of --recipe has a float network of its own; leave it out")
    if recipe and checkpoint:
        raise ConfigError(f"{checkpoint} and --recipe {recipe} both say what to report on; give one of them")
    if recipe and not html:
        with_recipe = with_data(settings, root, download)
        figures = _run_figures(recipe, with_recipe, own, run, label, notes, limit, stepped, fidelity_images)
    else:
        source = checkpoint or run or (default_folder(recipe) if recipe else None)
        if recipe:
            own = _own_of(recipe, with_data(settings, root, download), own)
        subject = subject_for(source, own, float_)
        images, name, problem = _images(subject, data, root, split, limit, download=download)
        if problem:
            subject.missing.append(f"images: {problem}")
        command = _command(checkpoint, {
            "recipe": recipe, "set": settings, "run": run, "model": model, "model-args": model_args, "state": state,
            "float": float_,
            "data": data, "root": root, "split": split if split != "test" else None, "limit": limit or None,
            "spiking-limit": stepped, "schedule": schedules, "label": label, "html": html,
        })  # fmt: skip
        figures = _figures(subject, images, label or name, schedules, stepped, command)
    if out:
        write_text(out, json.dumps(figures, indent=1) + "\n")
        console.note(f"wrote {out}")
    if html:
        write_text(html, page_of(figures))
        console.note(f"wrote {html}")
    if json_:
        console.show_json(figures)
    elif figures["kind"] == "accuracy":
        console.show_figures(figures)
    else:
        columns, rows = accuracy_rows(figures)
        if rows:
            console.show_table(figures["title"], columns, rows)
        for line in figures["missing"]:
            console.say(f"missing: {line}")


def _run_figures(
    recipe: str, settings: list[str], own: Own, run: Path | None, label: str | None, notes: list[str], limit: int,
    stepped: int | None, fidelity_images: int,
) -> dict[str, Any]:  # fmt: skip
    """Every phase of a finished run."""
    plan, network = run_network(load_recipe(recipe, settings), own)
    with console.download_progress() as progress:
        test = load_data(plan.data, size=plan.model.image_size, progress=progress).test.some(limit)
    with console.image_progress(images_to_measure(plan, len(test), stepped, fidelity_images), "measuring") as tell:
        return measure_run(
            plan, run or default_folder(recipe), test, label=label or plan.data.name, fidelity_images=fidelity_images,
            spiking_images=stepped, notes=notes, model=network, progress=tell,
        )  # fmt: skip


def _own_of(recipe: str, settings: list[str], own: Own) -> Own:
    """The own network that a recipe of the user names, if it names one."""
    _, network = run_network(load_recipe(recipe, settings), own)
    spec = None if network is None else network.model_spec
    return own if spec is None else Own(spec.name, json.dumps(spec.args), own.state)  # type: ignore[union-attr,arg-type]


def subject_for(source: Path | None, own: Own, float_network: Path | None = None) -> Subject:
    """What the report is about: a folder or file, or else the float network of --model."""
    if source is None:
        if float_network is not None:
            raise ConfigError(f"--float {float_network}: the network of --model is a float one; leave one of them out")
        return subject_of(own.made().eval())
    if own.state:
        raise ConfigError(f"{source} and --state {own.state} both hold weights; give one of them")
    header = header_at(source)
    if header is not None and header.get("form") in ("float", "quantized", "spiking"):
        check_named(header, source, own)
    spec = header.get("model") if header else None
    known = spec.get("args") if spec else None
    network = own._replace(args=own.args or (json.dumps(known) if known else None)).network() if own.name else None
    return subject_of(source, model=network, float_network=float_network)


def _images(
    subject: Subject, data: str | None, root: Path | None, split: str, limit: int, *, download: bool
) -> tuple[LabelledImages | None, str | None, str | None]:
    """Test images and the name of their set, or why there are none."""
    header = dict(subject.header)
    if data is None and not header.get("recipe"):
        return None, None, None
    network = subject.integer or subject.quantized or subject.float_net
    try:
        name = chosen_data(header, data=data, root=root, download=download).name
        return images_for(header, split, limit, data=data, root=root, download=download, network=network), name, None
    except NbsnnError as error:
        if data is not None:
            raise
        return None, None, str(error)


def _figures(
    subject: Subject, images: LabelledImages | None, name: str | None, schedules: list[str], stepped: int | None, command: str
) -> dict[str, Any]:
    for schedule in schedules:
        schedule_named(schedule)
    pairs = [pair for pair in valid_pairs() if pair[1] in (schedules or SCHEDULES)]
    limits = ReportLimits(stepped=stepped) if stepped else ReportLimits()
    with console.doing("measuring"):
        return measure_report(subject, images, data=name, command=command, pairs=pairs, limits=limits)


def _command(checkpoint: Path | None, options: Mapping[str, Any]) -> str:
    """The command that repeats a report, from the options that were given."""
    words = ["nbsnn", "report", *([str(checkpoint)] if checkpoint else [])]
    for name, value in options.items():
        for given in value if isinstance(value, list) else [] if value is None else [value]:
            words += [f"--{name}", str(given)]
    return shlex.join(words)
