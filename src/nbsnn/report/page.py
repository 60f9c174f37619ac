"""The figures of a report as one HTML file, which needs no network and whose charts need no JavaScript (extra `report`)."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from nbsnn.arguments import checked_arguments
from nbsnn.data.images import LabelledImages
from nbsnn.errors import ConfigError, MissingDependencyError
from nbsnn.files import write_text
from nbsnn.outputs import PAGE_SUFFIXES, REPORT, check_suffix
from nbsnn.recipe import FLOAT_BITS
from nbsnn.report import charts, drawing
from nbsnn.report.comparing import ReportComparison
from nbsnn.report.limits import ReportLimits
from nbsnn.report.measure import measure_report
from nbsnn.report.subjects import renamed, subject_of
from nbsnn.report.traces import BINS_PER_SPIKE

MOST_PAGE_BYTES = 2_000_000
_MOST_ROWS = 40  # of layers in one chart, so that it fits on a printed page
# What a page of a large network leaves out, one after the other; the JSON within the page has it.
_PARTS = ("spikes per synapse of each layer", "tables of layers", "levels of weights", "charts of rasters")


@checked_arguments
def write_report(
    path: str | Path,
    source: Any,
    images: LabelledImages | None = None,
    *,
    model: Any = None,
    float_network: Any = None,
    title: str | None = None,
    data: str | None = None,
    command: str | None = None,
    pairs: Iterable[tuple[str, str]] | None = None,
    limits: ReportLimits | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, Any]:
    """Measure a network or a run, and write the report as one HTML file; returns its figures.

    Args:
        path: the file to write, such as "report.html".
        source: a run folder, a checkpoint of any form, "zoo:NAME", or a network of any form but spiking.
        images: test images, such as `nbsnn.load_data("sample").test`; without them the report says what is missing.
        model: the float network of a file whose network is your own.
        float_network: the trained float network, or its file, whose accuracy is shown beside; by default that of the run folder
            that the source is or lies in.
        title: names the network; by default the source does.
        data: name of the images.
        command: that repeats the report; shown in it.
        pairs: (neuron, schedule) to run; all unless given.
        limits: how many images each part is measured on.
        progress: called with the title of the current step and the number of images done since the last call.
    Raises:
        CheckpointError: a file or folder that cannot be read.
        ConfigError: a path that does not end with `.html`, or something that no report is about.
        MissingDependencyError: matplotlib or jinja2 is not installed.
    """
    check_suffix(Path(path), REPORT, *PAGE_SUFFIXES)
    check_packages()
    subject = renamed(subject_of(source, model=model, float_network=float_network), title)
    figures = measure_report(
        subject, images, data=data, command=command, pairs=pairs, limits=limits,
        tell=progress or (lambda what, count: None),
    )  # fmt: skip
    write_text(Path(path), page_of(figures))
    return figures


def page_of(figures: Mapping[str, Any]) -> str:
    """The HTML of the figures of a report.

    Raises:
        ConfigError: it would be larger than 2 MB.
    """
    template, drawn = _environment().get_template("page.html.j2"), _charts(figures)
    size = 0
    for left_out in range(len(_PARTS) + 1):  # a network of a hundred layers needs less
        text: str = template.render(
            figures=figures, charts=drawn, number=partial(_number, figures), embedded=_embedded(figures),
            script=_resource("page.js"), style=_resource("page.css"), left_out=_PARTS[:left_out],
        )  # fmt: skip
        size = len(text.encode())
        if size <= MOST_PAGE_BYTES:
            return text
    raise ConfigError(f"the report has {size} bytes, more than {MOST_PAGE_BYTES}; give fewer schedules")


def check_packages() -> None:
    """Raise an error if matplotlib or jinja2 is missing, before anything is measured."""
    drawing.check_matplotlib()
    _jinja()


def _jinja() -> Any:
    try:
        import jinja2
    except ImportError:
        raise MissingDependencyError("jinja2", extra="report", purpose="writing a report") from None
    return jinja2


def _environment() -> Any:
    jinja2 = _jinja()
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip


def _resource(name: str) -> str:
    return files("nbsnn.report").joinpath(name).read_text(encoding="utf-8")


def _embedded(figures: Mapping[str, Any]) -> str:
    """JSON that cannot end its script element."""
    return json.dumps(figures).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def value_at(figures: Any, path: str) -> Any:
    """The value at a path such as "accuracy.2.top1"; names with dots are written with slashes between: "a/b.c/0"."""
    for key in path.split("/" if "/" in path else "."):
        figures = figures[int(key) if isinstance(figures, list) else key]
    return figures


def shown_number(value: float | None, form: str) -> str:
    """A number in a format, or a dash for none."""
    return "–" if value is None else format(value, form)


def _number(figures: Mapping[str, Any], path: str, form: str = ",.2f") -> Any:
    """A number of the figures as an element that names its place and its value."""
    from markupsafe import Markup

    value = value_at(figures, path)
    shown = shown_number(value, form)
    if value is None:
        return shown
    return Markup('<data value="{}" data-path="{}" data-form="{}">{}</data>').format(repr(value), path, form, shown)


def _charts(figures: Mapping[str, Any]) -> dict[str, str]:
    drawn: dict[str, str] = {}
    if figures["accuracy"]:
        drawn["accuracy"] = charts.intervals_chart("accuracy", figures["accuracy"])
    if figures["by_timesteps"]:
        drawn |= _against_timesteps(figures["by_timesteps"])
    drawn |= _learning(figures["phases"])
    if figures["layers"]:
        drawn |= _layers(figures["layers"])
    if figures["raster"]:
        for way in figures["raster"]["ways"]:
            name = f"raster-{way['neuron']}-{way['schedule']}"
            drawn[name] = charts.raster_chart(name, way["layers"], way["steps"], window=figures["raster"]["timesteps"])
    if figures["confusion"] and figures["confusion"]["counts"]:
        found = figures["confusion"]
        drawn["confusion"] = charts.grid_chart(
            "confusion", found["counts"], names=found["classes"], x="answer", y="class of the image"
        )
    for index, layer in enumerate(figures["weights"] or ()):
        low, high = layer["levels"][0], layer["levels"][-1]
        drawn[f"weights-{index}"] = charts.bars_chart(f"weights-{index}", layer["counts"], low=low, high=high, title="weights")
    return {name: svg for name, svg in drawn.items() if svg}


def _against_timesteps(rows: list[dict[str, Any]]) -> dict[str, str]:
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for form in row["forms"] if row["timesteps"] else ():
            series.setdefault(form["name"], []).append((row["timesteps"], form["top1"]))
    spiking = {name: sorted(points) for name, points in series.items()}
    if not any(len(points) > 1 for points in spiking.values()):
        return {}
    for row in rows:
        if row["bits"] == FLOAT_BITS:
            ends = [min(points[0][0] for points in spiking.values()), max(points[-1][0] for points in spiking.values())]
            spiking["float"] = [(end, row["forms"][0]["top1"]) for end in ends]
    return {"timesteps": charts.lines_chart("timesteps", spiking, x="T", y="top-1 in %")}


def _learning(phases: list[dict[str, Any]]) -> dict[str, str]:
    logs = [(("float" if p["bits"] == FLOAT_BITS else f"{p['bits']} bits"), p["log"]) for p in phases if p["log"]]
    if not logs:
        return {}
    loss = {name: [(row["epoch"], row["loss"]) for row in log] for name, log in logs}
    accuracy = {name: [(row["epoch"], row["top1"]) for row in log] for name, log in logs}
    return {
        "loss": charts.lines_chart("loss", loss, x="epoch", y="training loss"),
        "validation": charts.lines_chart("validation", accuracy, x="epoch", y="validation top-1 in %"),
    }


def _layers(layers: list[dict[str, Any]]) -> dict[str, str]:
    drawn = {}
    most = max(layer["levels"] for layer in layers)
    edges = [n / BINS_PER_SPIKE for n in range(-BINS_PER_SPIKE, (most + 1) * BINS_PER_SPIKE + 1)]
    parts = -(-len(layers) // _MOST_ROWS)
    for part in range(parts):
        some = layers[len(layers) * part // parts : len(layers) * (part + 1) // parts]
        number = f"-{part + 1}" if part else ""
        drawn[f"counts{number}"] = charts.stacked_chart(
            f"counts{number}", {layer["name"]: layer["counts"] for layer in some}, x="% of neurons, by count",
            labels=[str(n) for n in range(most + 1)],
        )  # fmt: skip
        if layers[0]["charges"]:
            drawn[f"charges{number}"] = charts.strips_chart(
                f"charges{number}", {layer["name"]: layer["charges"][1:-1] for layer in some},
                x="charge over the run, in spikes", edges=edges, lines=[n + 0.5 for n in range(most)],
            )  # fmt: skip
    for way in layers[0]["schedules"]:
        series = {layer["name"]: _points(layer["schedules"][way]["activity"]) for layer in _some(layers, 12)}
        name = "activity-" + way.replace(" ", "-")
        drawn[name] = charts.lines_chart(name, series, x="step", y="% of neurons that fire", height=3.2)
    return drawn


def _points(activity: dict[str, Any]) -> list[tuple[float, float]]:
    """The shares of a layer by step, with a silent step before and after if there is one."""
    first, shares = activity["first"], activity["shares"]
    before = [0.0] if first > 1 else []
    after = [0.0] if first + len(shares) - 1 < activity["steps"] else []
    return list(enumerate([*before, *shares, *after], start=first - len(before)))


def _some(layers: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    if len(layers) <= most:
        return layers
    return [layers[round(index * (len(layers) - 1) / (most - 1))] for index in range(most)]


def comparison_page(found: ReportComparison, *, margin: float, off_margin: float) -> str:
    """The HTML of a comparison; margins as in `compare_reports`."""
    template = _environment().get_template("compare.html.j2")
    text: str = template.render(found=found, margin=margin, off_margin=off_margin, style=_resource("page.css"))
    return text
