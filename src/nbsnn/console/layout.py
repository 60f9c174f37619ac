"""Tables that are never cut: on a narrow terminal headings wrap, then cells, and finally each row becomes a list."""

import re
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console

from nbsnn.console.screen import out, say, without_controls, wrapped, write

_NUMBER = re.compile(r"([-−±]?[0-9.,]+( .*)?)?|-")  # a unit, or a second number, may follow


def show_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], *, to: Console = out) -> None:
    """A table with numbers aligned right; empty cells at the start of a row repeat those above."""
    heads, lines = list(columns), [[without_controls(cell) for cell in row] for row in rows]
    say(title, style="bold", to=to)
    found = _fit(heads, lines, to.width)
    if found is None:
        _show_lists(heads, lines, to)
        return
    widths, gap = found
    numbers = [all(_NUMBER.fullmatch(line[i]) for line in lines) for i in range(len(heads))]
    _show_row(heads, widths, numbers, gap, to, style="bold")
    _show_row(["─" * width for width in widths], widths, numbers, gap, to)
    for line in lines:
        _show_row(line, widths, numbers, gap, to)
    write("", to)


def _fit(heads: Sequence[str], lines: Sequence[Sequence[str]], room: int) -> tuple[list[int], int] | None:
    """Widths of the columns and the gap between them; None if they do not fit even with wrapping."""
    columns = list(zip(heads, *lines, strict=True))
    whole = [max(map(cell_len, column)) for column in columns]
    words = [max(_longest_word(cell) for cell in column) for column in columns]
    uncut = [max(_longest_word(head), *map(cell_len, cells), 1) for head, *cells in columns]
    for widths, gap in ((whole, 2), (uncut, 2), (uncut, 1), (words, 1)):
        if sum(widths) + gap * (len(widths) - 1) <= room:
            return _widened(widths, whole, room - sum(widths) - gap * (len(widths) - 1)), gap
    return None


def _widened(widths: Sequence[int], whole: Sequence[int], spare: int) -> list[int]:
    """Distribute spare width, first to the columns that need the least."""
    result = list(widths)
    for index in sorted(range(len(widths)), key=lambda i: whole[i] - widths[i]):
        more = min(spare, whole[index] - result[index])
        result[index] += more
        spare -= more
    return result


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _show_row(
    cells: Sequence[str], widths: Sequence[int], numbers: Sequence[bool], gap: int, to: Console, *, style: str = ""
) -> None:
    """One row, on several lines where cells are wrapped."""
    columns = [wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
    for number in range(max(map(len, columns))):
        parts = []
        for cell, width, right in zip(columns, widths, numbers, strict=True):
            text = cell[number] if number < len(cell) else ""
            blanks = " " * (width - cell_len(text))
            parts.append(blanks + text if right else text + blanks)
        write((" " * gap).join(parts).rstrip(), to, style=style)


def _show_lists(heads: Sequence[str], lines: Sequence[Sequence[str]], to: Console) -> None:
    """Each row as lines of a heading and its cell; the terminal wraps longer ones."""
    width = max(map(cell_len, heads))
    above: list[str] = []
    for line in lines:
        start = next((place for place, cell in enumerate(line) if cell), 0)
        above = [*above[:start], *line[start:]]
        for head, cell in zip(heads, above, strict=True):
            if cell:
                write(f"{head}{' ' * (width - cell_len(head))}  {cell}", to)
        write("", to)
