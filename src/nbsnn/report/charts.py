"""Charts as SVG text in the colors of the page around them, drawn by matplotlib (extra `report`).

The page's style sheet gives the colors: text and axes have the page's own, and series the variables of its numbers.
"""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any, BinaryIO

import torch
from torch import Tensor

from nbsnn.errors import MissingDependencyError

INK = "#0a0b0c"  # stands for the color of text
SERIES = ("#0a0b10", "#0a0b11", "#0a0b12", "#0a0b13", "#0a0b14", "#0a0b15")  # stand for the variables of the style sheet
_NAMES = {INK: "currentColor"} | {color: f"var(--{number})" for number, color in enumerate(SERIES)}
_WIDTH = 4.6  # inches; a card on the page is as wide, or narrower on a phone
_MOST_NAMES = 60  # of layers beside a raster, which has the same height for any number of them
_SETTINGS = {
    "svg.hashsalt": "nbsnn", "svg.fonttype": "none", "path.simplify": False, "font.size": 8, "font.family": "sans-serif",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
    "axes.spines.right": False, "grid.color": INK, "grid.alpha": 0.15, "legend.frameon": False,
}  # fmt: skip


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError:
        raise MissingDependencyError("matplotlib", extra="report", purpose="drawing charts") from None
    return matplotlib


def check_matplotlib() -> None:
    """Raise an error if matplotlib is not installed."""
    _matplotlib()


def write_png(file: BinaryIO, pixels: Any) -> None:
    """Write [H, W, 3] uint8 as a PNG."""
    _matplotlib()
    from matplotlib.image import imsave

    imsave(file, pixels, format="png")


def picture(pixels: Tensor) -> str | None:
    """A small PNG as a data URI, of [C, H, W] uint8; None without a package that writes it."""
    step = max(1, max(pixels.shape[1:]) // 64)
    rgb = pixels[:, ::step, ::step] if len(pixels) == 3 else pixels[:1, ::step, ::step].expand(3, -1, -1)
    file = io.BytesIO()
    try:
        write_png(file, rgb.movedim(0, -1).cpu().numpy())
    except MissingDependencyError:
        return None
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


class Chart:
    """A figure with one plot, and in the end its SVG text."""

    def __init__(self, figure: Any, axes: Any) -> None:
        self.figure, self.axes, self.svg = figure, axes, ""


@contextmanager
def chart(name: str, *, height: float, width: float = _WIDTH, **labels: Any) -> Iterator[Chart]:
    """Context manager: a chart to draw into, whose `svg` is set on exit; `name` is its label, and a prefix of its ids."""
    matplotlib = _matplotlib()
    with matplotlib.rc_context(_SETTINGS):
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        made = Chart(figure, figure.subplots())
        made.axes.set(**labels)
        yield made
        file = io.StringIO()
        figure.patch.set_visible(False)
        made.axes.patch.set_visible(False)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    made.svg = _inline(file.getvalue(), name)


def _inline(text: str, name: str) -> str:
    """An SVG document as an element of a page: no prolog, ids of its own, colors of the page, as wide as its place."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href|href)="#', rf'\1="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    text = re.sub(r'<svg ([^>]*?)width="[\d.]+pt" height="[\d.]+pt"', rf'<svg role="img" aria-label="{name}" \1', text, count=1)
    text = re.sub(r"(?:height|width)=\"[\d.]+pt\" ", "", text, count=2)
    for color, variable in _NAMES.items():
        text = text.replace(color, variable)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px sans-serif", text)
    text = re.sub(r"(\d+\.\d\d)\d+", r"\1", text)  # hundredths of a point are enough
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def standalone(svg: str) -> str:
    """A chart as a file of its own, in colors that suit light and dark pages."""
    fixed = dict(
        zip(_NAMES.values(), ("#808890", "#3b7dd8", "#e0701a", "#1f9a8d", "#d0407a", "#8a6fe0", "#9a8a10"), strict=True)
    )
    for name, shade in fixed.items():
        svg = svg.replace(name, shade)
    return svg if "xmlns=" in svg else svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def color(index: int) -> str:
    """The color of a series."""
    return SERIES[index % len(SERIES)]


def intervals_chart(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Accuracies as points with their confidence intervals, a line for each form."""
    with chart(name, height=0.7 + 0.24 * len(rows), xlabel="top-1 in %, with 95 % interval") as made:
        for place, row in enumerate(rows):
            made.axes.plot([row["low"], row["high"]], [place, place], color=color(0), linewidth=2)
            made.axes.plot([row["top1"]], [place], "o", color=color(1), markersize=5)
        made.axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        made.axes.invert_yaxis()
        made.axes.grid(axis="x")
    return made.svg


def lines_chart(name: str, series: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str, height: float = 2.6) -> str:
    """A line through the points of each series, named in a legend."""
    styles = ("-", "--", ":", "-.")
    with chart(name, height=height, xlabel=x, ylabel=y) as made:
        for index, (label, points) in enumerate(series.items()):
            xs, ys = zip(*points, strict=True)
            marker = "o" if len(points) < 20 else ""
            style = styles[index // len(SERIES) % len(styles)]
            made.axes.plot(xs, ys, style, marker=marker, markersize=3, linewidth=1.3, color=color(index), label=label)
        made.axes.grid()
        made.axes.xaxis.get_major_locator().set_params(integer=True)
        if len(series) > 1:
            made.figure.legend(loc="outside lower center", ncols=2, fontsize=7)
    return made.svg


def stacked_chart(name: str, rows: Mapping[str, Sequence[float]], *, x: str, labels: Sequence[str]) -> str:
    """A bar for each row, divided into shares: the more, the darker."""
    with chart(name, height=0.7 + 0.17 * len(rows), xlabel=x) as made:
        places = range(len(rows))
        shades = [_shade(0, 0.08 + 0.92 * index / max(len(labels) - 1, 1)) for index in range(len(labels))]
        for place, shares in zip(places, rows.values(), strict=True):
            starts = [0.0, *accumulate(shares)]
            made.axes.broken_barh(
                list(zip(starts, shares, strict=False)), (place - 0.42, 0.84), facecolors=shades[: len(shares)]
            )
        for label, shade in zip(labels, shades, strict=True):
            made.axes.plot([], [], "s", color=shade, label=label)
        made.axes.set_xlim(0, 100)
        _name_rows(made, list(rows))
        made.figure.legend(loc="outside lower center", ncols=8, fontsize=6.5, handlelength=1)
    return made.svg


def strips_chart(
    name: str, rows: Mapping[str, Sequence[float]], *, x: str, edges: Sequence[float], lines: Sequence[float]
) -> str:
    """A histogram for each row as a strip of cells: the more, the darker; with lines at some x."""
    with chart(name, height=0.8 + 0.17 * len(rows), xlabel=x) as made:
        for place, shares in enumerate(rows.values()):
            most = max(shares) or 1.0
            cells = [((x, y - x), share / most) for (x, y), share in zip(pairwise(edges), shares, strict=False) if share]
            shades = [_shade(2, strength) for _, strength in cells]
            made.axes.broken_barh([cell for cell, _ in cells], (place - 0.42, 0.84), facecolors=shades)
        for line in lines:
            made.axes.axvline(line, color=INK, linewidth=0.6, alpha=0.5)
        made.axes.set_xlim(edges[0], edges[-1])
        _name_rows(made, list(rows))
    return made.svg


def _shade(index: int, strength: float) -> tuple[str, float]:
    """The color of a series, more or less transparent."""
    return color(index), round(strength, 3)


def _name_rows(made: Chart, names: Sequence[str]) -> None:
    made.axes.set_yticks(range(len(names)), names, fontsize=6.5)
    made.axes.set_ylim(len(names) - 0.5, -0.5)


def grid_chart(name: str, table: Sequence[Sequence[float]], *, names: Sequence[str], x: str, y: str) -> str:
    """A square table of numbers as cells, each row in shares of its largest number."""
    size = len(table)
    with chart(name, height=_WIDTH * 0.85, xlabel=x, ylabel=y) as made:
        for row, numbers in enumerate(table):
            most = max(*numbers, 1)
            for column, number in enumerate(numbers):
                if number:
                    shade = _shade(0, 0.08 + 0.72 * number / most)
                    made.axes.broken_barh([(column - 0.5, 1)], (row - 0.5, 1), facecolors=[shade])
                    if size <= 12:
                        made.axes.text(column, row, f"{number:g}", ha="center", va="center", fontsize=6.5)
        made.axes.set_xticks(range(size), names, rotation=60, fontsize=6.5, ha="right", rotation_mode="anchor")
        made.axes.set_yticks(range(size), names, fontsize=6.5)
        made.axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    return made.svg


def raster_chart(name: str, layers: Sequence[Mapping[str, Any]], steps: int, *, window: int) -> str:
    """Rows of neurons, layer by layer, with a mark for each spike; a line after every `window` steps."""
    rows = sum(len(layer["rows"]) for layer in layers) + len(layers)
    with chart(name, height=max(2.4, 0.9 + 0.021 * rows), xlabel="step") as made:
        place, ticks = 0, []
        for index, layer in enumerate(layers):
            ticks.append(place + len(layer["rows"]) / 2)
            for letter, shade in (("+", color(index % 2)), ("-", color(3))):
                xs, ys = _marks(layer["rows"], letter, place, layer["first"])
                made.axes.plot(xs, ys, color=shade, linewidth=0.9, solid_capstyle="butt")
            place += len(layer["rows"]) + 1
        for step in range(window, steps, window):
            made.axes.axvline(step + 0.5, color=INK, linewidth=0.4, alpha=0.3)
        every = -(-len(layers) // _MOST_NAMES)
        made.axes.set_yticks(ticks[::every], [layer["name"] for layer in layers[::every]], fontsize=6)
        made.axes.set(xlim=(0.5, steps + 0.5), ylim=(place, -1))
        made.axes.xaxis.get_major_locator().set_params(integer=True)
    return made.svg


def _marks(rows: Sequence[str], letter: str, place: int, first: int) -> tuple[list[float], list[float]]:
    """A short line for each of these letters, as one path with gaps: a small file."""
    gap = float("nan")
    spots = [(step, place + n) for n, row in enumerate(rows) for step, got in enumerate(row, start=first) if got == letter]
    return [x for step, _ in spots for x in (step - 0.4, step + 0.4, gap)], [y for _, row in spots for y in (row, row, gap)]


def membrane_chart(name: str, potentials: Tensor, spikes: Tensor, threshold: float) -> str:
    """The membrane of one neuron before each spike [steps], beside its threshold, with its spikes [steps] marked."""
    steps = torch.arange(1, len(potentials) + 1).tolist()
    values = (potentials.double() / threshold).tolist()
    with chart(name, height=2.2, xlabel="step", ylabel="membrane / threshold") as made:
        made.axes.axhline(1, color=color(3), linewidth=1, linestyle="--")
        made.axes.axhline(0, color=INK, linewidth=0.5, alpha=0.5)
        made.axes.plot(steps, values, "o-", color=color(0), markersize=3.5, linewidth=1.2)
        for step, value, spike in zip(steps, values, spikes.tolist(), strict=True):
            if spike:
                made.axes.annotate(
                    "+1" if spike > 0 else "−1", (step, value), xytext=(0, 5), textcoords="offset points", ha="center"
                )
        made.axes.xaxis.get_major_locator().set_params(integer=True)
        made.axes.margins(y=0.25)
    return made.svg


def bars_chart(name: str, counts: Sequence[float], *, low: float, high: float, title: str) -> str:
    """Counts of levels from `low` to `high` as bars, without matplotlib: there is one for each weight layer."""
    most, width = max(counts), 120 / len(counts)
    heights = [36 * count / most for count in counts]
    bars = "".join(
        f'<rect x="{5 + n * width:.1f}" y="{42 - height:.1f}" width="{0.8 * width:.1f}" height="{height:.1f}"/>'
        for n, height in enumerate(heights)
    )
    words = f'<text x="5" y="51">{low:g}</text><text x="125" y="51" text-anchor="end">{high:g}</text>'
    return (
        f'<svg role="img" aria-label="{name}" viewBox="0 0 130 54"><g fill="{_NAMES[color(2)]}">{bars}</g>'
        f'<g font-size="7" fill="currentColor">{words}<title>{title}</title></g></svg>'
    )
