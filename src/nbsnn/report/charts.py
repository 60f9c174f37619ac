"""Charts of a report as SVG text, one function each, drawn by matplotlib (extra `report`)."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from nbsnn.report.drawing import CHART_WIDTH, INK, NAMES, SERIES, Chart, chart, color
from nbsnn.report.drawing import standalone as standalone

_MOST_NAMES = 60  # of layers beside a raster, which has the same height for any number of them


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
    with chart(name, height=CHART_WIDTH * 0.85, xlabel=x, ylabel=y) as made:
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
        f'<svg role="img" aria-label="{name}" viewBox="0 0 130 54"><g fill="{NAMES[color(2)]}">{bars}</g>'
        f'<g font-size="7" fill="currentColor">{words}<title>{title}</title></g></svg>'
    )
