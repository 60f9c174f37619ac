"""Lines below a progress bar: the course of some figures, and a table of layers as far as the terminal has room."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from nbsnn.console import screen

_BARS = {True: "▁▂▃▄▅▆▇█", False: "_.-=+*%#"}  # by whether the terminal can show the first
_LINES_ABOVE = 8  # of the terminal, for the bar, the course and the last lines of the log


def sparkline(values: Sequence[float], width: int, *, unicode: bool = True) -> str:
    """The last values as bars between their least and their largest: `▁▃▆█`."""
    shown = list(values)[-width:]
    low, high = min(shown), max(shown)
    bars = _BARS[unicode]
    return "".join(bars[round((value - low) / (high - low) * (len(bars) - 1)) if high > low else 0] for value in shown)


def course(figures: Sequence[tuple[str, Sequence[float], str]]) -> Text:
    """A line for each (name, values, format): the last value, and all as bars."""
    width, unicode = max(screen.err.width - 30, 8), screen.err.encoding.startswith("utf")
    return Text(
        "\n".join(
            f"{name:10} {form.format(values[-1]):>10}  {sparkline(values, width, unicode=unicode)}"
            for name, values, form in figures
            if values
        )
    )


def fitting_rows(rows: Sequence[tuple[float, Sequence[str]]], columns: Sequence[str]) -> Table:
    """The rows of the largest keys that the terminal has room for, in their order, and how many are hidden."""
    room = max(screen.err.height - _LINES_ABOVE, 3)
    least = sorted((key for key, _ in rows), reverse=True)[:room][-1]
    shown = [cells for key, cells in rows if key >= least][:room]
    hidden = len(rows) - len(shown)
    caption = f"{hidden} more layers" if hidden else None
    table = Table(box=None, caption=caption, caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for cells in shown:
        table.add_row(*cells)
    return table


def below_the_bar(figures: Sequence[tuple[str, Sequence[float], str]], layers: Table | None) -> Group:
    """The course of some figures and the table of layers, as far as there are any."""
    return Group(*([course(figures)] if any(values for _, values, _ in figures) else []), *([layers] if layers else []))
