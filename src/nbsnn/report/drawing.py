"""What all charts of a report share: matplotlib, the colors of the page around them, and SVG text; and small pictures.

The page's style sheet gives the colors: text and axes have the page's own, and series the variables of its numbers.
"""

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from torch import Tensor

from nbsnn.errors import MissingDependencyError

INK = "#0a0b0c"  # stands for the color of text
SERIES = ("#0a0b10", "#0a0b11", "#0a0b12", "#0a0b13", "#0a0b14", "#0a0b15")  # stand for the variables of the style sheet
NAMES = {INK: "currentColor"} | {color: f"var(--{number})" for number, color in enumerate(SERIES)}
CHART_WIDTH = 4.6  # inches; a card on the page is as wide, or narrower on a phone
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
def chart(name: str, *, height: float, width: float = CHART_WIDTH, **labels: Any) -> Iterator[Chart]:
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
    for color, variable in NAMES.items():
        text = text.replace(color, variable)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px sans-serif", text)
    text = re.sub(r"(\d+\.\d\d)\d+", r"\1", text)  # hundredths of a point are enough
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def standalone(svg: str) -> str:
    """A chart as a file of its own, in colors that suit light and dark pages."""
    fixed = dict(
        zip(NAMES.values(), ("#808890", "#3b7dd8", "#e0701a", "#1f9a8d", "#d0407a", "#8a6fe0", "#9a8a10"), strict=True)
    )
    for name, shade in fixed.items():
        svg = svg.replace(name, shade)
    return svg if "xmlns=" in svg else svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def color(index: int) -> str:
    """The color of a series."""
    return SERIES[index % len(SERIES)]
