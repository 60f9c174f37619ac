"""A line chart as SVG text, drawn by matplotlib (`pip install -e '.[docs]'`)."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence

Series = Mapping[str, Sequence[tuple[float, float]]]


def line_chart(title: str, x_label: str, y_label: str, series: Series) -> str:
    """Lines through points (x, y), both axes from zero, a marker at each point; holds `fingerprint(series)`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "nbsnn", "svg.fonttype": "none"}):  # the same text each time; letters stay letters
        figure = Figure(figsize=(7, 3.4), layout="constrained")
        axes = figure.subplots()
        for name, points in series.items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
        axes.set(title=title, xlabel=x_label, ylabel=y_label, xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Description": fingerprint(series)})
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def fingerprint(series: Series) -> str:
    """Hash of the points: says whether a chart shows these figures, whatever version of matplotlib drew it."""
    text = json.dumps({name: [list(point) for point in points] for name, points in series.items()})
    return f"points {hashlib.sha256(text.encode()).hexdigest()[:16]}"
