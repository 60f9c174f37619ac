"""`nbsnn compare`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from nbsnn import console
from nbsnn.cli.app import app
from nbsnn.cli.networks import chosen_data, images_for
from nbsnn.cli.options import (
    DataOption,
    DownloadOption,
    JsonOption,
    LimitOption,
    OverwriteOption,
    OwnArgsOption,
    OwnOption,
    RootOption,
    SplitOption,
    between,
)
from nbsnn.cli.own import Own
from nbsnn.cli.report import subject_for
from nbsnn.files import write_text
from nbsnn.outputs import PAGE_SUFFIXES, REPORT, check_output, check_suffix
from nbsnn.report.comparing import ReportComparison, compare_reports, read_report
from nbsnn.report.limits import ReportLimits
from nbsnn.report.measure import measure_report
from nbsnn.report.page import check_packages, comparison_page


@app.command()
def compare(
    sources: Annotated[
        list[Path],
        typer.Argument(help="Run folders, checkpoints (also zoo:NAME), or files of nbsnn report.", metavar="A B ..."),
    ],
    margin: Annotated[
        float, typer.Option("--margin", callback=between(0, 100), help="Points of accuracy that may be lost.")
    ] = 0.0,
    off_margin: Annotated[
        float, typer.Option("--off-margin", callback=between(0, 100), help="Points that the share of neurons off may rise by.")
    ] = 0.0,
    model: OwnOption = None,
    model_args: OwnArgsOption = None,
    data: DataOption = None,
    root: RootOption = None,
    download: DownloadOption = False,
    split: SplitOption = "test",
    limit: LimitOption = 0,
    spiking_limit: Annotated[
        int, typer.Option("--spiking-limit", callback=between(1), help="Run spikes on the first N images.")
    ] = 200,
    html: Annotated[Path | None, typer.Option("--html", help="Write the comparison to this file, for a browser.")] = None,
    overwrite: OverwriteOption = False,
    json_: JsonOption = False,
) -> None:
    """Compare runs, checkpoints or reports with the first of them.

    The exit code is 1 if an accuracy, or the exactness of spikes, fell by more than the margins. Networks are measured here;
    reports are read.

    \b
    Examples:
      nbsnn compare runs/old runs/new --margin 0.5
      nbsnn compare zoo:cifar10/resnet20-w2a2 new.safetensors --data sample
    """
    if html:
        check_suffix(html, REPORT, *PAGE_SUFFIXES)
        check_output(html, REPORT, inputs=sources, overwrite=overwrite)
        check_packages()
    own, reports = Own(model, model_args), []
    for source in sources:
        figures = read_report(source)
        if figures is None:
            figures = _measured(source, own, data, root, split, limit, spiking_limit, download=download)
        reports.append(figures)
    found = compare_reports([str(source) for source in sources], reports, margin=margin, off_margin=off_margin)
    if html:
        write_text(html, comparison_page(found, margin=margin, off_margin=off_margin))
        console.note(f"wrote {html}")
    if json_:
        console.say(json.dumps(found.to_dict(), indent=1))
    else:
        _show(found)
    if found.fallen:
        raise typer.Exit(1)


def _measured(
    source: Path, own: Own, data: str | None, root: Path | None, split: str, limit: int, stepped: int, *, download: bool
) -> dict[str, Any]:
    """The accuracies of a run's or a checkpoint's network."""
    subject = subject_for(source, own)
    network = subject.integer or subject.quantized or subject.float_net
    images = images_for(dict(subject.header), split, limit, data=data, root=root, download=download, network=network)
    name = chosen_data(dict(subject.header), data=data, root=root, download=download).name
    with console.doing(f"measuring {source}"):
        return measure_report(subject, images, data=name, limits=ReportLimits(stepped=stepped), brief=True)


def _show(found: ReportComparison) -> None:
    rows = []
    for form, standings in found.forms.items():
        cells = []
        for one in standings:
            off = "" if one is None or one.off is None else f", {one.off:.3f} % off"
            cells.append("-" if one is None else f"{one.top1:.2f}{off}")
        rows.append((form, *cells))
    console.show_table("Top-1 in %, and neurons whose count differs", ("form", *found.names), rows)
    sizes = [(text, *(console.or_dash(value, ",.0f") for value in values)) for text, values in found.sizes.items()]
    if sizes:
        console.show_table("Sizes", ("", *found.names), sizes)
    for line in found.remarks:
        console.say(line)
    for line in found.fallen:
        console.say(f"fallen: {line}")
